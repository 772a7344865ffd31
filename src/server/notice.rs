//! Thread `reaper`: what the lease, the bus and the end of the node send it.

use super::reaping::Suspect;
use crate::store::NodeId;

/// What the reaper is sent.
pub(super) enum Notice {
    /// The lease was renewed, and after that these nodes had none.
    Renewed {
        missing: Vec<Suspect>,
    },
    /// Node `by` has done everything that is due at the death of `dead`.
    Confirmed {
        dead: NodeId,
        by: NodeId,
    },
    Stop,
}
