//! The checker finds what it is there to find.

use std::collections::HashMap;
use std::time::Duration;

use crate::history::{Event, Fault, Harm, History, Kind, Stream, Target};

const ME: Stream = Stream { from: 0, kind: Kind::Chat };

/// Two players, both logged in on line 1 of node 0; the first sends to the second. An event happens
/// in the second that stands beside it.
fn run(sender: &[(u64, Event)], recipient: &[(u64, Event)], faults: &[Fault]) -> Vec<String> {
    let log = |events: &[(u64, Event)]| {
        let begin = (0, Event::LoggedIn { line: 1, node: 0 });
        [begin].iter().chain(events).map(|&(at, event)| (Duration::from_secs(at), event)).collect()
    };
    let history = History {
        logs: vec![log(sender), log(recipient)],
        faults: faults.to_vec(),
        recipients: HashMap::from([(ME, vec![1])]),
        repeats_allowed: 1,
    };
    let (_, broken) = history.check();
    broken.iter().for_each(|broken| assert!(history.tell(broken).contains(&broken.text)));
    broken.into_iter().map(|broken| broken.text).collect()
}

fn acked(number: u32) -> Event {
    Event::Acked { line: 1, kind: Kind::Chat, number, delivered: true }
}

fn arrived(line: u32, number: u32) -> Event {
    Event::Arrived { line, stream: ME, number }
}

fn fault(target: Target, began: u64, over: u64) -> Fault {
    Fault { target, harm: Harm::Kill, began: Duration::from_secs(began), over: Duration::from_secs(over) }
}

#[test]
fn what_arrives_in_order_is_well() {
    let sent = [(1, acked(1)), (2, acked(2))];
    assert_eq!(run(&sent, &[(1, arrived(1, 1)), (2, arrived(1, 1)), (3, arrived(1, 2))], &[]), [""; 0]);
}

#[test]
fn a_loss_is_found() {
    let broken = run(&[(1, acked(1)), (2, acked(2))], &[(2, arrived(1, 2))], &[]);
    assert!(matches!(&broken[..], [one] if one.contains("1, acked as delivered, never came")), "{broken:?}");
}

#[test]
fn what_came_on_a_connection_that_was_given_up_is_lost() {
    let recipient = [(1, Event::LoggedIn { line: 2, node: 1 }), (2, arrived(1, 1))];
    let broken = run(&[(1, acked(1))], &recipient, &[]);
    assert!(matches!(&broken[..], [one] if one.contains("never came")), "{broken:?}");
}

#[test]
fn disorder_is_found() {
    let broken = run(&[], &[(1, arrived(1, 2)), (2, arrived(1, 1))], &[]);
    assert!(matches!(&broken[..], [one] if one.contains("came after 2")), "{broken:?}");
}

#[test]
fn too_many_repeats_are_found() {
    let broken = run(&[], &[(1, arrived(1, 1)), (2, arrived(1, 1)), (2, arrived(1, 1))], &[]);
    assert_eq!(broken, ["2 of 3 messages came again, 2 of them in the second at 2 s"]);
}

#[test]
fn a_second_session_is_found() {
    let served = |asked| Event::Served { line: 1, asked: Duration::from_secs(asked) };
    let newer = (5, Event::LoggedIn { line: 2, node: 1 });
    assert_eq!(run(&[newer, (7, served(4))], &[], &[]), [""; 0]);
    let broken = run(&[newer, (7, served(6))], &[], &[]);
    assert!(matches!(&broken[..], [one] if one.contains("beside that of 2")), "{broken:?}");
}

#[test]
fn users_of_a_killed_node_must_be_back_in_time_if_nothing_else_is_amiss() {
    let back = |at| [(3, Event::Ended { line: 1 }), (at, Event::LoggedIn { line: 2, node: 1 })];
    let elsewhere = [(1, Event::Left { line: 1 })];
    let kill = fault(Target::Node(0), 2, 4);
    assert_eq!(run(&back(12), &elsewhere, &[kill]), [""; 0]);
    for late in [&back(13)[..], &back(13)[..1]] {
        let broken = run(late, &elsewhere, &[kill]);
        assert!(matches!(&broken[..], [one] if one.contains("killed node 0 was back after")), "{broken:?}");
    }
    assert_eq!(run(&back(13), &elsewhere, &[kill, fault(Target::MariaDb, 11, 12)]), [""; 0]);
    assert_eq!(run(&back(13), &elsewhere, &[fault(Target::Node(1), 2, 4)]), [""; 0]);
}

#[test]
fn a_refusal_without_a_reason_is_found() {
    let refused = |errno| Event::LoginRefused { line: 1, node: 0, errno };
    assert_eq!(run(&[(1, refused(21)), (1, refused(2))], &[], &[]), [""; 0]);
    assert_eq!(run(&[(1, refused(1))], &[], &[]).len(), 1);
    assert_eq!(run(&[(1, Event::Refused { line: 1, kind: Kind::Chat, number: 1, errno: 15 })], &[], &[]).len(), 1);
}
