//! The users' channels that this node listens to, and the sessions that wait until that is effective. No I/O.

use std::collections::HashMap;

use super::posts::Posts;
use crate::bus::BusEvent;
use crate::store::UserId;

/// A user's channel.
#[derive(Default)]
struct Channel {
    /// The session that listens; `None`: it has ended, but a confirmation is still outstanding.
    epoch: Option<u64>,
    /// The number of SUBSCRIBEs that are not confirmed. After an earlier confirmation than the last one, an UNSUBSCRIBE
    /// may still follow.
    due: u32,
    /// The epochs of the sessions that wait for the last confirmation.
    waiting: Vec<u64>,
}

impl Channel {
    /// Tells the sessions that wait that they listen, or that nothing more can be done for now.
    fn tell(&mut self, user: UserId, posts: &mut Posts) {
        self.waiting.drain(..).for_each(|epoch| posts.push(BusEvent::Listening { user, epoch }));
    }
}

/// The state of the line to Redis.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    /// There is no line: nothing can be sent.
    Away,
    /// It takes commands, but is not up yet: no session waits for it.
    Begins,
    Up,
}

/// The users' channels on the current line: on a new one, everything is subscribed to anew.
pub(super) struct Subscriptions {
    channels: HashMap<UserId, Channel>,
    line: Line,
}

impl Subscriptions {
    pub fn new() -> Subscriptions {
        Subscriptions { channels: HashMap::new(), line: Line::Away }
    }

    /// A session begins to listen. True: SUBSCRIBE is to be sent.
    pub fn listen(&mut self, user: UserId, epoch: u64, posts: &mut Posts) -> bool {
        let channel = self.channels.entry(user).or_default();
        let subscribe = channel.epoch.replace(epoch).is_none() && self.line != Line::Away;
        channel.waiting.push(epoch);
        channel.due += u32::from(subscribe);
        if channel.due == 0 || self.line != Line::Up {
            channel.tell(user, posts);
        }
        subscribe
    }

    /// A session ends. True: UNSUBSCRIBE is to be sent.
    pub fn unlisten(&mut self, user: UserId, epoch: u64) -> bool {
        let Some(channel) = self.channels.get_mut(&user).filter(|channel| channel.epoch == Some(epoch)) else {
            return false;
        };
        channel.epoch = None;
        if channel.due == 0 {
            self.channels.remove(&user);
        }
        self.line != Line::Away
    }

    /// Redis has confirmed a SUBSCRIBE.
    pub fn confirmed(&mut self, user: UserId, posts: &mut Posts) {
        let Some(channel) = self.channels.get_mut(&user) else { return };
        channel.due = channel.due.saturating_sub(1);
        if channel.due == 0 {
            channel.tell(user, posts);
            if channel.epoch.is_none() {
                self.channels.remove(&user);
            }
        }
    }

    /// There is a new line; returns the users whose channels are to be subscribed to.
    pub fn line_begins(&mut self) -> Vec<UserId> {
        self.line = Line::Begins;
        self.channels.values_mut().for_each(|channel| channel.due = 1);
        self.channels.keys().copied().collect()
    }

    /// All subscriptions on the new line are confirmed.
    pub fn line_is_up(&mut self) {
        self.line = Line::Up;
    }

    /// The line is gone, and no outstanding confirmation will come.
    pub fn line_ends(&mut self, posts: &mut Posts) {
        self.line = Line::Away;
        self.channels.retain(|user, channel| {
            channel.due = 0;
            channel.tell(*user, posts);
            channel.epoch.is_some()
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::bus::Listener;
    use crate::home::Homes;
    use crate::store::NodeId;

    struct Nobody;

    impl Listener for Nobody {
        fn homes(&self) -> Homes {
            Homes::new(0, 2)
        }
        fn post(&self, _: usize, _: &mut Vec<BusEvent>) {}
        fn confirmed(&self, _: NodeId, _: NodeId) {}
    }

    const USER: UserId = 18;

    fn with_line() -> (Subscriptions, Posts) {
        let mut subscriptions = Subscriptions::new();
        assert!(subscriptions.line_begins().is_empty());
        subscriptions.line_is_up();
        (subscriptions, Posts::new(Arc::new(Nobody)))
    }

    /// The epochs that were told since the last call.
    fn told(posts: &mut Posts) -> Vec<u64> {
        let home = posts.homes.of_user(USER);
        assert!(posts.by_shard[1 - home].is_empty(), "it is not their shard");
        let epoch = |event| match event {
            BusEvent::Listening { user: USER, epoch } => epoch,
            event => panic!("{event:?}"),
        };
        posts.by_shard[home].drain(..).map(epoch).collect()
    }

    #[test]
    fn nobody_is_told_to_listen_before_the_last_confirmation() {
        let (mut subscriptions, mut posts) = with_line();
        assert!(subscriptions.listen(USER, 1, &mut posts));
        assert!(subscriptions.unlisten(USER, 1));
        assert!(subscriptions.listen(USER, 2, &mut posts));
        assert!(!subscriptions.listen(USER, 3, &mut posts), "one SUBSCRIBE is enough");
        subscriptions.confirmed(USER, &mut posts);
        assert_eq!(told(&mut posts), [0; 0], "the UNSUBSCRIBE may be carried out by now");
        subscriptions.confirmed(USER, &mut posts);
        assert_eq!(told(&mut posts), [1, 2, 3]);
        assert!(!subscriptions.listen(USER, 4, &mut posts));
        assert_eq!(told(&mut posts), [4], "it listens already");
    }

    #[test]
    fn only_the_last_session_ends_the_listening() {
        let (mut subscriptions, mut posts) = with_line();
        subscriptions.listen(USER, 1, &mut posts);
        subscriptions.listen(USER, 2, &mut posts);
        subscriptions.confirmed(USER, &mut posts);
        assert!(!subscriptions.unlisten(USER, 1));
        assert!(subscriptions.unlisten(USER, 2));
        assert!(!subscriptions.unlisten(USER, 2), "it has ended");
        assert!(subscriptions.channels.is_empty());
    }

    #[test]
    fn a_broken_line_answers_everybody_and_a_new_one_takes_over_who_still_listens() {
        let (mut subscriptions, mut posts) = with_line();
        subscriptions.listen(USER, 1, &mut posts);
        subscriptions.unlisten(USER, 1);
        subscriptions.line_ends(&mut posts);
        assert_eq!(told(&mut posts), [1]);
        assert!(subscriptions.channels.is_empty());
        assert!(!subscriptions.listen(USER, 2, &mut posts), "there is no line");
        assert_eq!(told(&mut posts), [2]);
        assert_eq!(subscriptions.line_begins(), [USER]);
        assert!(!subscriptions.listen(USER, 3, &mut posts));
        assert_eq!(told(&mut posts), [3], "nobody waits for a line that may never come up");
        subscriptions.unlisten(USER, 3);
        assert!(subscriptions.listen(USER, 4, &mut posts), "it takes commands, though");
        assert_eq!(told(&mut posts), [4]);
        subscriptions.line_is_up();
        assert!(!subscriptions.listen(USER, 5, &mut posts));
        subscriptions.confirmed(USER, &mut posts);
        assert_eq!(told(&mut posts), [0; 0]);
        subscriptions.confirmed(USER, &mut posts);
        assert_eq!(told(&mut posts), [5]);
        subscriptions.line_ends(&mut posts);
        assert!(!subscriptions.unlisten(USER, 5), "there is no line");
        assert!(subscriptions.line_begins().is_empty());
    }
}
