//! What clients send, and what becomes of what they get.

use std::io::Write;

use crate::bytes::{Mark, mark, msgid, number_after};
use crate::dialect::Dialect;
use crate::generator::Generator;
use crate::measures::Measure;
use crate::roles::Role;
use crate::users::register_request;

/// With it, an object is about 150 bytes long.
const TAIL: &str = " see you at the station\",\"time\":\"2026-01-02 03:04:05\"";

/// Index of what is awaited by a client.
const CHATS: usize = 0;
const GROUP_CHATS: usize = 1;

impl Generator<'_> {
    /// One more time, client `n` does what its role is, as of this time.
    pub(super) fn act(&mut self, n: usize, at: u64) -> anyhow::Result<()> {
        if self.stopping {
            return Ok(());
        }
        let seq = self.plan.seq;
        match self.clients[n].role {
            Role::Partner => {
                self.owed += 1 + u64::from(seq);
                self.send(n, at, seq)
            }
            Role::Speaker { others, .. } => {
                self.owed += others as u64 + u64::from(seq);
                self.send(n, at, seq)
            }
            Role::Depositor { .. } => {
                self.owed += 1;
                self.send(n, at, true)
            }
            Role::Feeder => self.send_asleep(n, at),
            Role::Visitor => {
                self.log_out(n)?;
                self.log_in(n, at)
            }
            Role::Registrar => {
                self.owed += 1;
                let client = &mut self.clients[n];
                client.asked = at;
                client.sent += 1;
                let request = register_request(&format!("{}-{}", client.account.name, client.sent));
                self.request(n, &request)
            }
            Role::Listener { .. } | Role::Sleeper | Role::Idle => Ok(()),
        }
    }

    /// The next act of client `n`, unless time decides about that.
    fn go_on(&mut self, n: usize, now: u64) -> anyhow::Result<()> {
        if self.rate.is_none() { self.act(n, now) } else { Ok(()) }
    }

    fn send(&mut self, n: usize, at: u64, seq: bool) -> anyhow::Result<()> {
        let client = &mut self.clients[n];
        let object = &mut self.scratch;
        object.clear();
        object.extend_from_slice(&client.head);
        // Writing to a vector cannot fail.
        let _ = write!(object, "{} @{at}{TAIL}", client.sent);
        if seq {
            let _ = write!(object, ",\"seq\":{at}");
        }
        object.push(b'}');
        client.sent += 1;
        client.dialect.write(&mut client.output, &client.to, object);
        self.leave(n)
    }

    fn request(&mut self, n: usize, request: &str) -> anyhow::Result<()> {
        let client = &mut self.clients[n];
        client.output.extend_from_slice(request.as_bytes());
        client.output.push(b'\n');
        self.leave(n)
    }

    fn log_out(&mut self, n: usize) -> anyhow::Result<()> {
        let request = format!("{{\"msgid\":3,\"id\":{}}}", self.clients[n].account.id);
        self.request(n, &request)
    }

    fn log_in(&mut self, n: usize, at: u64) -> anyhow::Result<()> {
        self.owed += 1;
        self.clients[n].asked = at;
        let request = self.clients[n].account.login_request();
        self.request(n, &request)
    }

    /// Feeder `n` has its neighbour leave, and writes to it. That one comes back when all is acked.
    fn send_asleep(&mut self, n: usize, at: u64) -> anyhow::Result<()> {
        if self.clients[n].is_away {
            return Ok(());
        }
        let messages = self.plan.window as u64;
        self.owed += 2 * messages;
        for client in [n, n ^ 1] {
            self.clients[client].due = messages;
            self.clients[client].is_away = true;
        }
        self.log_out(n ^ 1)?;
        (0..messages).try_for_each(|_| self.send(n, at, true))
    }

    /// Client `n` has got an object or a line.
    pub(super) fn receive(&mut self, n: usize, piece: &[u8], now: u64) -> anyhow::Result<()> {
        let dialect = self.clients[n].dialect;
        if dialect != Dialect::Chat {
            if mark(piece).is_some() {
                return self.chat(n, piece, now);
            }
            self.outcome.errors += u64::from(piece.starts_with(b"ERROR") || piece.starts_with(b"-ERR"));
            if let Some(answer) = dialect.answer(piece) {
                self.clients[n].output.extend_from_slice(&answer);
                return self.leave(n);
            }
            return Ok(());
        }
        let msgid = msgid(piece);
        match msgid {
            Some(6) => return self.chat(n, piece, now),
            Some(10) => return self.group_chat(n, piece, now),
            _ => {}
        }
        let is_refused = number_after(piece, b"\"errno\":").is_some_and(|errno| errno != 0);
        if is_refused {
            self.outcome.errors += 1;
        }
        let role = self.clients[n].role;
        match (msgid, role) {
            (Some(200), Role::Depositor { .. }) => {
                self.done += 1;
                self.settle(Measure::Stored, seq(piece), now);
                self.go_on(n, now)
            }
            (Some(200), Role::Feeder) => {
                self.settle(Measure::Stored, seq(piece), now);
                self.clients[n].due -= 1;
                if self.clients[n].due == 0 { self.log_in(n ^ 1, now) } else { Ok(()) }
            }
            (Some(200), _) if self.plan.seq => {
                self.settle(Measure::Ack, seq(piece), now);
                Ok(())
            }
            (Some(2), Role::Visitor) => {
                self.done += 1;
                self.settle(Measure::Login, self.clients[n].asked, now);
                self.go_on(n, now)
            }
            (Some(2), Role::Sleeper) => {
                self.settle(Measure::Login, self.clients[n].asked, now);
                self.came_back(n, piece, now)
            }
            (Some(5), Role::Registrar) => {
                self.done += 1;
                self.settle(Measure::Register, self.clients[n].asked, now);
                self.go_on(n, now)
            }
            _ => {
                self.outcome.errors += u64::from(!is_refused);
                Ok(())
            }
        }
    }

    fn chat(&mut self, n: usize, object: &[u8], now: u64) -> anyhow::Result<()> {
        let Some(mark) = self.delivered(n, CHATS, object) else { return Ok(()) };
        if self.clients[n].role == Role::Sleeper {
            return self.check_return(n, now);
        }
        self.time(Measure::Chat, mark.at, now);
        self.go_on(n, now)
    }

    fn group_chat(&mut self, n: usize, object: &[u8], now: u64) -> anyhow::Result<()> {
        let Some(mark) = self.delivered(n, GROUP_CHATS, object) else { return Ok(()) };
        self.time(Measure::Member, mark.at, now);
        let Role::Listener { speaker } = self.clients[n].role else { return Ok(()) };
        let talker = &mut self.clients[speaker];
        talker.heard += 1;
        let Role::Speaker { others, .. } = talker.role else { return Ok(()) };
        if !talker.heard.is_multiple_of(others as u64) {
            return Ok(());
        }
        self.time(Measure::LastMember, mark.at, now);
        self.go_on(speaker, now)
    }

    /// A login reply, with what was stored meanwhile; what does not fit follows as chats.
    fn came_back(&mut self, n: usize, reply: &[u8], now: u64) -> anyhow::Result<()> {
        self.clients[n].is_away = false;
        let mut rest = reply;
        while let Some((_, behind)) = mark(rest) {
            self.delivered(n, CHATS, rest);
            rest = behind;
        }
        self.check_return(n, now)
    }

    /// Is sleeper `n` back, and has it got everything?
    fn check_return(&mut self, n: usize, now: u64) -> anyhow::Result<()> {
        let sleeper = &self.clients[n];
        if sleeper.is_away || sleeper.due > 0 || !self.clients[n ^ 1].is_away {
            return Ok(());
        }
        self.time(Measure::Return, sleeper.asked, now);
        self.clients[n ^ 1].is_away = false;
        self.go_on(n ^ 1, now)
    }

    /// Counts a message, and checks its place among those from the same sender.
    fn delivered(&mut self, n: usize, kind: usize, object: &[u8]) -> Option<Mark> {
        let Some((mark, _)) = mark(object) else {
            self.outcome.errors += 1;
            return None;
        };
        let client = &mut self.clients[n];
        let order = &mut client.order[kind];
        if mark.number >= order.awaited {
            order.missing += mark.number - order.awaited;
            order.awaited = mark.number + 1;
        } else if order.missing > 0 {
            order.missing -= 1;
            self.outcome.disordered += 1;
        } else {
            // For the second time.
            self.outcome.errors += 1;
            return None;
        }
        client.due = client.due.saturating_sub(1);
        self.received += 1;
        self.done += 1;
        Some(mark)
    }

    /// An answer that was owed has come.
    fn settle(&mut self, measure: Measure, since: u64, now: u64) {
        self.received += 1;
        self.time(measure, since, now);
    }

    fn time(&mut self, measure: Measure, since: u64, now: u64) {
        if self.measuring {
            self.outcome.measures.record(measure, now.saturating_sub(since));
        }
    }
}

fn seq(ack: &[u8]) -> u64 {
    number_after(ack, b"\"seq\":").unwrap_or(0)
}
