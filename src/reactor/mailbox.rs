//! Any thread: how a reactor is reached. Only the reactor itself takes what is there.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mio::net::TcpStream;
use mio::{Poll, Registry, Token, Waker};

use super::budget::InFlight;
use super::connection::Connection;
use super::id::ListenerId;
use super::slot::ConnectionSlot;
use super::types::Types;

/// The token of every Poll's waker; no connection's slot reaches it.
pub(super) const WAKER: Token = Token(usize::MAX);

/// What a reactor with such a handler receives.
pub enum Mail<H: Types> {
    /// From the acceptor: an accepted socket, registered nowhere yet.
    Connection(TcpStream, SocketAddr, ListenerId, ConnectionSlot),
    /// From another reactor: a connection that goes on here, registered nowhere at the moment.
    Moved(Box<Moving<H>>),
    /// From another reactor or a worker.
    Letter(H::Letter),
    /// The handler is to finish what it has begun.
    Stop,
    /// The loop is to end. It comes when every reactor has finished, since until then they may
    /// need each other.
    Exit,
    /// The loop is to end at once, whatever lies in the mailbox before this: all connections are closed
    /// without being flushed, and the handler is not called for anything any more.
    Abandon,
}

/// A connection on its way from one reactor to another: the loop's part, and the handler's.
pub struct Moving<H: Types> {
    pub(super) connection: Box<Connection<H>>,
    pub(super) moved: H::Moved,
    /// Until it has arrived.
    pub(super) in_flight: InFlight,
}

/// An unbounded queue with a waker; posting never blocks and never fails.
///
/// It is unbounded because the pool's way back to a reactor must never block. What bounds it is
/// that reactors stop reading from the connections whose requests are not settled.
pub struct Mailbox<T> {
    queue: Mutex<Vec<T>>,
    waker: Waker,
}

impl<T> Mailbox<T> {
    /// A mailbox whose owner sleeps on the Poll of `registry`.
    pub fn new(registry: &Registry) -> io::Result<Self> {
        Ok(Mailbox { queue: Mutex::new(Vec::new()), waker: Waker::new(registry, WAKER)? })
    }

    fn queue(&self) -> MutexGuard<'_, Vec<T>> {
        // Nothing below can panic while it holds the lock.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn post(&self, letter: T) {
        let mut queue = self.queue();
        let was_empty = queue.is_empty();
        queue.push(letter);
        drop(queue);
        self.wake_if(was_empty);
    }

    /// Posts all of `letters` (at least one), in order, and leaves the Vec empty for the next turn.
    /// Returns how many wait now.
    pub fn post_all(&self, letters: &mut Vec<T>) -> usize {
        let mut queue = self.queue();
        let was_empty = queue.is_empty();
        queue.append(letters);
        let waiting = queue.len();
        drop(queue);
        self.wake_if(was_empty);
        waiting
    }

    /// Wakes only from empty to non-empty: while letters lie there, a wake is on its way, because
    /// the owner takes all there is in every turn. A wake for each letter costs ten times as much.
    fn wake_if(&self, was_empty: bool) {
        // An eventfd write fails only if the Poll is gone, and then there is no thread to be woken.
        if was_empty && let Err(error) = self.waker.wake() {
            log::error!("cannot wake a reactor: {error}");
        }
    }

    /// Takes everything, in the thread of the reactor whose mailbox it is, in exchange for an empty `batch`, whose capacity is used again.
    pub fn take(&self, batch: &mut Vec<T>) {
        debug_assert!(batch.is_empty());
        std::mem::swap(&mut *self.queue(), batch);
    }

    /// The number of letters that wait.
    pub fn len(&self) -> usize {
        self.queue().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What the reactors of one program are made of: a Poll for each, and the mailboxes in which they, and other threads,
/// reach each other.
#[expect(clippy::type_complexity, reason = "a name for it would have to be looked up")]
pub fn mailboxes<H: Types>(reactors: usize) -> io::Result<(Vec<Poll>, Arc<[Mailbox<Mail<H>>]>)> {
    let polls: Vec<Poll> = (0..reactors).map(|_| Poll::new()).collect::<io::Result<_>>()?;
    let mailboxes = polls.iter().map(|poll| Mailbox::new(poll.registry())).collect::<io::Result<Vec<_>>>()?;
    Ok((polls, mailboxes.into()))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use mio::Events;

    use super::*;

    #[test]
    fn only_the_first_letter_wakes_and_none_is_lost_over_many_rounds() {
        let mut poll = Poll::new().unwrap();
        let mailbox = Arc::new(Mailbox::new(poll.registry()).unwrap());
        let (senders, each) = (2_u32, 100_000_u32);
        let threads: Vec<_> = (0..senders)
            .map(|_| {
                let mailbox = Arc::clone(&mailbox);
                std::thread::spawn(move || (0..each).for_each(|i| mailbox.post(i)))
            })
            .collect();
        let (mut events, mut batch, mut got, mut wakes) = (Events::with_capacity(4), Vec::new(), 0, 0);
        let deadline = Instant::now() + Duration::from_secs(60);
        while got < senders * each {
            assert!(Instant::now() < deadline, "a wake was lost: {got} of {}", senders * each);
            // Longer than the deadline: only a wake ends this, so a lost one cannot hide.
            poll.poll(&mut events, Some(Duration::from_secs(61))).unwrap();
            wakes += u32::from(!events.is_empty());
            mailbox.take(&mut batch);
            got += batch.drain(..).count() as u32;
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(wakes <= got);
    }

    #[test]
    fn letters_behind_the_first_do_not_wake_again() {
        let mut poll = Poll::new().unwrap();
        let mailbox = Mailbox::new(poll.registry()).unwrap();
        let mut events = Events::with_capacity(4);
        mailbox.post(1);
        poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
        assert_eq!(events.iter().count(), 1);
        mailbox.post_all(&mut vec![2, 3]);
        poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
        assert_eq!(events.iter().count(), 0, "a wake for each letter");
        let mut batch = Vec::new();
        mailbox.take(&mut batch);
        assert_eq!(batch, [1, 2, 3]);
    }
}
