//! The bus of a node that is alone: there are no other nodes.

use std::sync::Arc;

use super::{Bus, BusEvent, BusOp, Listener};

/// Answers at once that no other node was reached.
pub struct Local(Arc<dyn Listener>);

impl Local {
    pub fn new(listener: Arc<dyn Listener>) -> Local {
        Local(listener)
    }
}

impl Bus for Local {
    fn send(&self, ops: &mut Vec<BusOp>) {
        let homes = self.0.homes();
        for op in ops.drain(..) {
            let (shard, event) = match op {
                BusOp::ToUser(_, _, ticket) | BusOp::CountListeners(_, ticket) => {
                    (usize::from(ticket.shard), BusEvent::Reached(ticket, Some(0)))
                }
                BusOp::Listen { user, epoch } => (homes.of_user(user), BusEvent::Listening { user, epoch }),
                BusOp::ToNode(..) | BusOp::Unlisten { .. } | BusOp::Confirm { .. } => continue,
            };
            self.0.post(shard, &mut vec![event]);
        }
    }

    fn is_up(&self) -> bool {
        true // there are no others to reach
    }
}
