//! Rule 8: what a client that does not read, or says nothing, may cost.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chat_server::reactor::{Body, CloseReason, ConnId, Io, Limits, Mail, Mark, Message, Outbox, Slowness, Unwritten};

use crate::probe;
use crate::support::eventually;
use crate::toy::{Event, Reactors, Setup, Tag, Toy, UNCOUNTED, echo, expect_bytes, message, send};

const LIMITS: Limits = Limits { high_water: 256 * 1024, hard: 1 << 20, total: usize::MAX };
const CHAT: usize = 10_007; // no socket is full at a multiple of it

fn reactors() -> Reactors {
    Setup { script: echo, limits: LIMITS, ..Setup::default() }.start()
}

fn chat(n: usize) -> Vec<u8> {
    vec![b'a' + (n % 26) as u8; CHAT]
}

/// Fills the sockets with what counts towards no mark, and more than they hold.
const JAM: usize = 8 << 20;

fn jam(reactors: &Reactors, conn: ConnId) {
    reactors.ask(conn.reactor(), move |_, io| {
        let much = vec![b'x'; JAM];
        io.send(conn, Message { options: UNCOUNTED, ..message(&much, None) })
    });
}

/// Sends chats, one a turn, until the connection is over the soft mark. Returns how many, and what
/// was recalled.
fn send_until_over(reactors: &Reactors, conn: ConnId) -> (usize, Vec<Unwritten<Tag>>) {
    for n in 0.. {
        reactors.ask(0, move |_, io| send(io, conn, &chat(n), Some(Tag::Chat(n))));
        reactors.turns(0, 1);
        match reactors.told().pop() {
            None => {}
            Some(Event::Recalled(id, recalled)) if id == conn => return (n + 1, recalled),
            Some(other) => panic!("{other:?}"),
        }
    }
    unreachable!("the mark is passed before")
}

#[test]
fn over_the_soft_mark_chats_are_recalled_in_order_and_drained_after() {
    let reactors = reactors();
    let (mut client, conn) = reactors.connect();
    jam(&reactors, conn);
    let (sent, recalled) = send_until_over(&reactors, conn);
    assert_eq!(sent, LIMITS.high_water / CHAT + 1);
    assert!(recalled.iter().map(|message| number(message.tag)).eq(0..sent));
    assert!(recalled.iter().all(|message| *message.body == chat(number(message.tag))[..] && !message.begun));
    reactors.turns(0, 5);
    assert_eq!(reactors.told(), [], "drained although nobody has read");
    expect_bytes(&mut client, &vec![b'x'; JAM]);
    reactors.expect(&Event::Drained(conn));
    client.write_all(b"nothing else").unwrap();
    expect_bytes(&mut client, b"nothing else");
}

fn number(tag: Tag) -> usize {
    match tag {
        Tag::Chat(n) | Tag::Reply(n) => n,
    }
}

#[test]
fn a_client_that_reads_nothing_for_a_second_holds_up_no_message_however_few_wait() {
    let reactors = reactors();
    let (mut client, conn) = reactors.connect();
    jam(&reactors, conn);
    let began = Instant::now();
    reactors.ask(0, move |_, io| send(io, conn, b"few", Some(Tag::Chat(0))));
    let recalled = reactors.wait("the message to be handed back", |event| match event {
        Event::Recalled(id, recalled) if *id == conn => Some(recalled.len()),
        _ => None,
    });
    let took = began.elapsed();
    assert_eq!(recalled, 1);
    assert!(took >= Duration::from_millis(900) && took < Duration::from_secs(3), "after {took:?}");
    // It is not over the mark, so it is not closed for being slow.
    reactors.pass(Duration::from_millis(9500));
    expect_bytes(&mut client, &vec![b'x'; JAM]);
    reactors.expect(&Event::Drained(conn));
}

#[test]
fn a_client_that_reads_a_little_all_the_time_holds_up_no_message_either() {
    let reactors = reactors();
    let (mut client, conn) = reactors.connect();
    jam(&reactors, conn);
    let (mut sent, mut recalled) = (Vec::new(), Vec::new());
    let began = Instant::now();
    // A tenth of a megabyte every tenth of a second is progress, though far from all, and so is a message.
    while began.elapsed() < Duration::from_millis(2500) {
        let number = sent.len();
        reactors.ask(0, move |_, io| send(io, conn, b"few", Some(Tag::Chat(number))));
        sent.push(Instant::now());
        expect_bytes(&mut client, &vec![b'x'; 100 << 10]);
        reactors.pass(Duration::from_millis(100));
        recalled.extend(reactors.told().into_iter().filter_map(|event| match event {
            Event::Recalled(id, recalled) if id == conn => Some((Instant::now(), recalled)),
            _ => None,
        }));
    }
    let waited: Vec<Duration> = recalled
        .iter()
        .flat_map(|(at, messages)| messages.iter().map(|message| *at - sent[number(message.tag)]))
        .collect();
    let (all, longest) = (waited.len(), waited.iter().max());
    // The first waits for a second, and takes those behind it along; then the same for the next ones.
    assert!(longest.is_some_and(|longest| *longest >= Duration::from_millis(900)), "recalled too early: {waited:?}");
    assert!(waited.iter().all(|waited| *waited < Duration::from_millis(1600)), "recalled too late: {waited:?}");
    let left = sent.iter().skip(all).filter(|at| at.elapsed() > Duration::from_millis(1600)).count();
    assert_eq!(left, 0, "of {} messages {all} were recalled: {waited:?}", sent.len());
}

#[test]
fn a_message_that_is_spaced_out_waits_no_longer_than_others_do() {
    const ALL: usize = 300;
    let reactors = reactors();
    let (mut client, conn) = reactors.connect();
    reactors.ask(0, move |_, io| {
        io.pace(conn);
        // At this pace they take 3 s.
        (0..ALL).for_each(|n| assert!(send(io, conn, b".", Some(Tag::Chat(n)))));
    });
    let began = Instant::now();
    let recalled = reactors.wait("the rest to be handed back", |event| match event {
        Event::Recalled(id, recalled) if *id == conn => {
            Some(recalled.iter().map(|message| number(message.tag)).collect::<Vec<_>>())
        }
        _ => None,
    });
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(900) && took < Duration::from_secs(3), "after {took:?}");
    let written = ALL - recalled.len();
    assert!((10..=110).contains(&written), "{written} messages in {took:?}");
    assert_eq!(recalled, (written..ALL).collect::<Vec<_>>());
    reactors.expect(&Event::Drained(conn));
    expect_bytes(&mut client, &vec![b'.'; written]);
}

#[test]
fn a_queue_that_was_recalled_whole_is_not_drained_while_the_socket_is_full() {
    let reactors = reactors();
    let (_client, conn) = reactors.connect();
    // Messages of one byte are never begun, so all that wait can be recalled.
    let send_dots = |count| {
        reactors.ask(0, move |_, io| (0..count).for_each(|n| assert!(send(io, conn, b".", Some(Tag::Chat(n))))));
        reactors.pass(Duration::from_millis(100));
        reactors.told()
    };
    while send_dots(LIMITS.high_water / 2).len() == LIMITS.high_water / 2 {}
    let told = send_dots(LIMITS.high_water);
    assert!(told.iter().any(|event| matches!(event, Event::Recalled(..))), "not over the mark");
    assert!(!told.contains(&Event::Drained(conn)), "the way through the store leads into a full socket");
}

#[test]
fn nobody_else_waits_for_a_slow_client_and_its_own_requests_do() {
    let reactors = reactors();
    let (mut slow, conn) = reactors.connect();
    let (mut other, _) = reactors.connect();
    jam(&reactors, conn);
    send_until_over(&reactors, conn);
    slow.write_all(b"more please").unwrap();
    other.write_all(b"hello").unwrap();
    expect_bytes(&mut other, b"hello");
    reactors.turns(0, 5);
    assert!(!reactors.told().iter().any(|event| matches!(event, Event::Input(id, _) if *id == conn)));
    read_until(&mut slow, b"more please");
}

/// What the log says of a client that was closed for not reading: how many bytes wait, and why that is too much.
fn closed_for(reactors: &Reactors, conn: ConnId) -> (usize, String) {
    let begin = format!("INFO {conn} is closed as a slow consumer: ");
    let lines = reactors.log(conn.reactor()).into_iter().filter_map(|line| Some(line.strip_prefix(&begin)?.to_owned()));
    let lines: Vec<String> = lines.collect();
    let [line] = &lines[..] else { panic!("one line, not {lines:?}") };
    let (bytes, why) = line.split_once(" bytes wait to be written, ").expect("a number of bytes");
    (bytes.parse().unwrap(), why.to_owned())
}

fn read_until(client: &mut TcpStream, end: &[u8]) {
    let (mut all, mut chunk) = (Vec::new(), vec![0; 64 * 1024]);
    while !all.ends_with(end) {
        let n = client.read(&mut chunk).expect("more comes");
        assert!(n > 0, "it ended");
        all.extend_from_slice(&chunk[..n]);
    }
}

#[test]
fn over_the_soft_mark_for_ten_seconds_it_is_closed_and_its_chats_handed_back() {
    let reactors = reactors();
    let (_client, conn) = reactors.connect();
    let began = Instant::now();
    jam(&reactors, conn);
    send_until_over(&reactors, conn);
    reactors.ask(0, move |_, io| {
        assert!(send(io, conn, b"late", Some(Tag::Chat(1_000_000))));
        assert!(send(io, conn, b"reply", Some(Tag::Reply(7))));
    });
    reactors.wait("the late chat to be handed back", |event| match event {
        Event::Recalled(_, recalled) => recalled.iter().any(|chat| chat.tag == Tag::Chat(1_000_000)).then_some(()),
        _ => None,
    });
    let (reason, unwritten) = reactors.closed(conn);
    let took = began.elapsed();
    assert_eq!(reason, CloseReason::SlowConsumer(Mark::HighWater));
    assert!(took >= Duration::from_millis(9900) && took < Duration::from_secs(20), "after {took:?}");
    let (bytes, why) = closed_for(&reactors, conn);
    assert!(bytes > JAM / 2, "{bytes}");
    assert_eq!(why, format!("10 s after its queue has passed the high-water mark of {} bytes", LIMITS.high_water));
    assert_eq!(unwritten, [(Tag::Reply(7), false)]);
    reactors.wait_until_empty(0);
}

#[test]
fn a_client_that_caught_up_is_not_closed_by_the_timer_of_its_first_lapse() {
    let reactors = reactors();
    let (mut client, conn) = reactors.connect();
    jam(&reactors, conn);
    send_until_over(&reactors, conn);
    reactors.pass(Duration::from_secs(3));
    client.write_all(b"caught up").unwrap();
    read_until(&mut client, b"caught up");
    jam(&reactors, conn);
    reactors.told();
    let again = Instant::now();
    send_until_over(&reactors, conn);
    assert_eq!(reactors.closed(conn).0, CloseReason::SlowConsumer(Mark::HighWater));
    assert!(again.elapsed() >= Duration::from_millis(9900), "closed after {:?}", again.elapsed());
}

#[test]
fn over_the_hard_mark_it_is_closed_at_once_and_nothing_is_lost() {
    let reactors = reactors();
    let (_client, conn) = reactors.connect();
    let began = Instant::now();
    for n in 0..1000 {
        reactors.tell(0, move |_, io| _ = send(io, conn, &chat(n), Some(Tag::Reply(n))));
    }
    let mut written = 0;
    let (reason, unwritten) = reactors.wait("its end", |event| match event {
        Event::Closed(_, reason, unwritten) => {
            Some((*reason, unwritten.iter().map(|message| number(message.tag)).collect::<Vec<_>>()))
        }
        Event::Written(_, tag, _) => {
            assert_eq!(number(*tag), written);
            written += 1;
            None
        }
        _ => None,
    });
    assert_eq!(reason, CloseReason::SlowConsumer(Mark::Hard));
    assert!(began.elapsed() < Duration::from_secs(8), "only after {:?}", began.elapsed());
    let queued = written + unwritten.len();
    assert!(unwritten.iter().copied().eq(written..queued), "{written} written, then {unwritten:?}");
    assert!(unwritten.len() * CHAT > LIMITS.hard, "closed before the mark");
    let (bytes, why) = closed_for(&reactors, conn);
    assert!(bytes > LIMITS.hard && bytes <= LIMITS.hard + CHAT, "{bytes}");
    assert_eq!(why, format!("above the hard mark of {} bytes", LIMITS.hard));
}

#[test]
fn one_message_over_the_hard_mark_does_not_wait_for_a_second_one() {
    let reactors = reactors();
    let (_client, conn) = reactors.connect();
    let began = Instant::now();
    reactors.ask(0, move |_, io| send(io, conn, &vec![b'x'; 10 << 20], Some(Tag::Reply(0))));
    assert_eq!(reactors.closed(conn).0, CloseReason::SlowConsumer(Mark::Hard));
    assert!(began.elapsed() < Duration::from_secs(8), "only after {:?}", began.elapsed());
}

#[test]
fn a_recall_does_not_leave_its_bytes_exemption_to_others() {
    let (mut outbox, now) = (Outbox::<Tag>::default(), Instant::now());
    outbox.push(message(&[b'c'; 1000], Some(Tag::Chat(0))), now);
    outbox.push(Message { options: UNCOUNTED, ..message(&[b'r'; 100], None) }, now);
    outbox.push(message(&[b'a'; 500], None), now);
    assert_eq!(outbox.counted(), 1500);
    outbox.recall(|tag| matches!(tag, Tag::Chat(_)));
    assert_eq!(outbox.counted(), 500);
}

#[test]
fn a_message_for_many_is_not_copied_for_each() {
    const CLIENTS: usize = 50;
    let reactors = reactors();
    let clients: Vec<(TcpStream, ConnId)> = (0..CLIENTS).map(|_| reactors.connect()).collect();
    let body: Arc<[u8]> = vec![b'g'; 200 * 1024].into();
    let recipients: Vec<ConnId> = clients.iter().map(|(_, id)| *id).collect();
    let shared = Arc::clone(&body);
    let grown = reactors.ask(0, move |_, io| {
        let before = probe::held();
        for conn in recipients {
            io.send(conn, Message { body: Body::Shared(&shared), ..message(b"", None) });
        }
        probe::held() - before
    });
    assert!(grown < (CLIENTS * 1024) as isize, "{grown} bytes for {CLIENTS} recipients");
    for (mut client, _) in clients {
        expect_bytes(&mut client, &body);
    }
    eventually("the message to be freed", || Arc::strong_count(&body) == 1);
}

#[test]
fn an_idle_connection_holds_no_buffers() {
    // Enough that the few outboxes which a reactor keeps for the next ones do not weigh.
    const CLIENTS: usize = 3000;
    let reactors = reactors();
    let before = reactors.ask(0, |_, _| probe::held());
    let mut clients: Vec<TcpStream> = (0..CLIENTS).map(|_| reactors.client()).collect();
    let text = vec![b't'; 4096];
    clients.iter_mut().for_each(|client| client.write_all(&text).unwrap());
    clients.iter_mut().for_each(|client| expect_bytes(client, &text));
    reactors.turns(0, 2);
    reactors.told();
    let each = (reactors.ask(0, |_, _| probe::held()) - before) / CLIENTS as isize;
    assert!(each < 600, "{each} bytes for each idle connection");
}

/// The total that may wait for all clients of the next tests; each has its share of it.
const TOTAL: usize = 2 << 20;
const CLIENTS: usize = 8;

fn few_bytes_for_many() -> (Reactors, Vec<(TcpStream, ConnId)>) {
    let limits = Limits { high_water: 1 << 20, hard: 8 << 20, total: TOTAL };
    let reactors = Setup { limits, ..Setup::default() }.start();
    let clients = (0..CLIENTS).map(|_| reactors.connect()).collect();
    (reactors, clients)
}

#[test]
fn all_queues_together_are_bounded_although_none_has_passed_its_own_mark() {
    const EACH: usize = 100;
    let (reactors, mut clients) = few_bytes_for_many();
    for (_, conn) in &clients {
        let conn = *conn;
        reactors.ask(0, move |_, io| (0..EACH).for_each(|n| assert!(send(io, conn, &chat(n), Some(Tag::Chat(n))))));
    }
    let buffered = || reactors.ask(0, |_, io| io.buffered());
    eventually("less to wait", || buffered() <= TOTAL);
    reactors.pass(Duration::from_millis(200));
    // Nothing is lost: what was recalled, and what the client reads, is all there was, in order.
    let (mut recalled, mut drained) = (vec![Vec::new(); CLIENTS], Vec::new());
    for event in reactors.told() {
        match event {
            Event::Recalled(id, unwritten) => {
                let client = clients.iter().position(|(_, conn)| *conn == id).unwrap();
                recalled[client].extend(unwritten.iter().filter(|message| !message.begun).map(|m| number(m.tag)));
            }
            // The kernel may have found room for what was left.
            Event::Drained(id) => drained.push(id),
            _ => {}
        }
    }
    assert!(recalled.iter().filter(|recalled| !recalled.is_empty()).count() >= 3, "{recalled:?}");
    for ((client, conn), recalled) in clients.iter_mut().zip(recalled) {
        for n in 0..recalled.first().copied().unwrap_or(EACH) {
            expect_bytes(client, &chat(n));
        }
        assert!(recalled.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{recalled:?}");
        if !recalled.is_empty() {
            assert_eq!(recalled.last(), Some(&(EACH - 1)));
            if !drained.contains(conn) {
                reactors.expect(&Event::Drained(*conn));
            }
        }
    }
    assert_eq!(buffered(), 0);
}

#[test]
fn with_twice_as_much_waiting_who_holds_more_than_its_share_is_closed_at_once() {
    let (reactors, clients) = few_bytes_for_many();
    let (mut reader, _) = reactors.connect();
    let began = Instant::now();
    for (_, conn) in &clients {
        let conn = *conn;
        reactors.ask(0, move |_, io| {
            let much = vec![b'x'; 4 << 20];
            io.send(conn, Message { options: UNCOUNTED, ..message(&much, None) })
        });
    }
    eventually("less to wait", || reactors.ask(0, |_, io| io.buffered()) <= 2 * TOTAL);
    let closed = reactors.told().into_iter().filter(|event| matches!(event, Event::Closed(..))).collect::<Vec<_>>();
    assert!(closed.len() >= CLIENTS - 2, "{closed:?}");
    assert!(
        closed.iter().all(|event| matches!(event, Event::Closed(_, CloseReason::SlowConsumer(Mark::HardShare), _)))
    );
    assert!(began.elapsed() < Duration::from_secs(8), "only after {:?}", began.elapsed());
    let Event::Closed(conn, ..) = closed[0] else { unreachable!() };
    let (bytes, why) = closed_for(&reactors, conn);
    let share = TOTAL / (CLIENTS + 1);
    assert!(bytes > share, "{bytes}");
    assert_eq!(why, format!("above its share of all buffers, now {share} bytes"));
    reader.write_all(b"served").unwrap();
    expect_bytes(&mut reader, b"served");
}

#[test]
fn above_its_share_for_ten_seconds_while_memory_is_short_it_is_closed() {
    let (reactors, clients) = few_bytes_for_many();
    let conn = clients[0].1;
    // More than all may have waiting, and less than twice as much.
    reactors.ask(0, move |_, io| {
        io.send(conn, Message { options: UNCOUNTED, ..message(&vec![b'x'; 7 << 19], None) });
    });
    assert_eq!(reactors.closed(conn).0, CloseReason::SlowConsumer(Mark::Share));
    let (bytes, why) = closed_for(&reactors, conn);
    assert!(bytes > TOTAL, "{bytes}");
    assert_eq!(why, format!("10 s after its queue has passed its share of all buffers, now {} bytes", TOTAL / CLIENTS));
}

/// What may wait on both reactors: large enough that it does not matter what more the kernel takes in a while.
const FOR_BOTH: usize = 16 << 20;

fn two_reactors() -> Reactors {
    let limits = Limits { high_water: 32 << 20, hard: 64 << 20, total: FOR_BOTH };
    Setup { reactors: 2, limits, ..Setup::default() }.start()
}

/// Sends until a reactor's queues hold this number of bytes.
fn fill_queue(reactors: &Reactors, conn: ConnId, bytes: usize) {
    let fill = move |io: &mut Io<Toy>| {
        io.send(conn, Message { options: UNCOUNTED, ..message(&[b'x'; 256 * 1024], None) });
    };
    while reactors.ask(conn.reactor(), |_, io| io.buffered()) < bytes {
        reactors.ask(conn.reactor(), move |_, io| fill(io));
    }
}

fn is_tight(reactors: &Reactors, index: usize) -> bool {
    reactors.ask(index, |_, io| io.is_tight())
}

/// How often a reactor has found a client to hold more than its share.
fn found(reactors: &Reactors, index: usize) -> u64 {
    reactors.threads[index].counts.slow.of(Slowness::Tight).get()
}

#[test]
fn the_queues_of_all_reactors_together_are_bounded_although_none_of_them_has_too_much() {
    let reactors = two_reactors();
    let clients = [reactors.connect(), reactors.connect()];
    fill_queue(&reactors, clients[0].1, FOR_BOTH / 8 * 5);
    reactors.turns(0, 2);
    reactors.turns(1, 2);
    assert!(!is_tight(&reactors, 0) && !is_tight(&reactors, 1));
    fill_queue(&reactors, clients[1].1, FOR_BOTH / 8 * 5);
    // What one has published at the end of a turn, the other one knows.
    reactors.turns(clients[1].1.reactor(), 1);
    assert!(is_tight(&reactors, 0) && is_tight(&reactors, 1));
    // The reactor that has nothing to do looks at its own queues, too.
    eventually("both to look", || found(&reactors, 0) == 1 && found(&reactors, 1) == 1);
}

#[test]
fn what_a_handler_holds_counts_for_all_reactors_and_a_share_is_one_of_all_connections() {
    let reactors = two_reactors();
    let clients: Vec<_> = (0..4).map(|_| reactors.connect()).collect();
    let (first, conn) = (clients[0].1.reactor(), clients[0].1);
    // More than a quarter of all, and less than a half.
    fill_queue(&reactors, conn, FOR_BOTH / 16 * 5);
    reactors.turns(first, 2);
    assert!(!is_tight(&reactors, first));
    let hold = |bytes| {
        reactors.ask(1 - first, move |_, io| io.set_held(bytes));
        reactors.turns(1 - first, 1);
    };
    hold(FOR_BOTH / 16 * 13);
    assert!(is_tight(&reactors, first) && is_tight(&reactors, 1 - first));
    eventually("its queue to be found", || found(&reactors, first) == 1);
    assert_eq!(found(&reactors, 1 - first), 0);
    hold(FOR_BOTH / 16);
    assert!(!is_tight(&reactors, first) && !is_tight(&reactors, 1 - first));
}

#[test]
fn what_a_reactor_had_that_has_ended_does_not_count() {
    let mut reactors = two_reactors();
    reactors.ask(1, |_, io| io.set_held(2 * FOR_BOTH));
    reactors.turns(1, 1);
    assert!(is_tight(&reactors, 0));
    reactors.mailboxes[1].post(Mail::Abandon);
    reactors.join(1);
    assert!(!is_tight(&reactors, 0));
}
