//! What comes for the parcels of a job while that waits for a worker.

use std::sync::{Arc, Mutex, PoisonError};

/// Messages that come for the parcels of a job while it waits for a worker, each with its parcel's place in the job.
/// Without it they would wait for the next job, behind this one's answer, since a recipient has one at a time.
#[derive(Debug, Clone)]
pub(super) struct Late(Arc<Mutex<Option<Vec<LateMessage>>>>);

type LateMessage = (usize, Arc<[u8]>);

impl Late {
    /// Of a job that no worker has yet.
    pub fn open() -> Late {
        Late(Arc::new(Mutex::new(Some(Vec::new()))))
    }

    /// Adds a message to a parcel, unless a worker has the job.
    pub fn add(&self, parcel: usize, body: &Arc<[u8]>) -> bool {
        let mut messages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        messages.as_mut().map(|messages| messages.push((parcel, Arc::clone(body)))).is_some()
    }

    /// What has come by now. Nothing more comes.
    pub fn close(&self) -> Vec<LateMessage> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default()
    }
}
