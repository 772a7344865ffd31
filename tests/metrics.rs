//! `--metrics`, on real servers: what is counted, how it is exported, and that no scraper can do harm.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use chat_server::home::Homes;
use chat_server::wire::Framing;
use rlimit::Resource;
use serde_json::json;
use support::{Account, Config, DEADLINE, Launch, eventually, refused_start};

static ALONE: Config = Config::new(2);
static CLUSTER: Config = Config::cluster(2, 1);

const ANY_PORT: [&str; 2] = ["--metrics", "127.0.0.1:0"];

// -- asking ---------------------------------------------------------------------------------------

/// Status line and headers, and body.
type Reply = (String, String);

fn try_get(address: SocketAddr, path: &str) -> std::io::Result<Reply> {
    ask(address, format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"))
}

/// Sends bytes and reads to the end.
fn ask(address: SocketAddr, request: impl AsRef<[u8]>) -> std::io::Result<Reply> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.write_all(request.as_ref())?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    let (head, body) = reply.split_once("\r\n\r\n").ok_or(ErrorKind::UnexpectedEof)?;
    Ok((head.to_owned(), body.to_owned()))
}

#[track_caller]
fn get(address: SocketAddr, path: &str) -> Reply {
    try_get(address, path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn status(reply: &Reply) -> &str {
    reply.0.split(' ').nth(1).unwrap_or_default()
}

// -- Prometheus' text format ----------------------------------------------------------------------

/// A family of metrics.
#[derive(Debug, Default)]
struct Family {
    kind: String,
    /// The samples by `name{labels}`, as they are written there.
    samples: BTreeMap<String, f64>,
    /// The names of its labels.
    labels: BTreeSet<String>,
}

/// What a server exported, checked against the rules of the format.
#[derive(Debug)]
struct Scrape(BTreeMap<String, Family>);

fn is_name(name: &str) -> bool {
    let letter = |c: char| c.is_ascii_alphabetic() || c == '_';
    name.starts_with(letter) && name.chars().all(|c| letter(c) || c.is_ascii_digit())
}

/// Names and values of `a="b",c="d"`.
#[track_caller]
fn labels(text: &str) -> Vec<(&str, &str)> {
    let mut rest = text;
    let mut labels = Vec::new();
    while !rest.is_empty() {
        let (name, after) = rest.split_once("=\"").expect("a label has a value");
        let end = after.find('"').expect("its value ends");
        assert!(is_name(name) && !after[..end].contains('\\'), "{text}");
        labels.push((name, &after[..end]));
        rest = match &after[end + 1..] {
            "" => "",
            more => more.strip_prefix(',').expect("commas stand between labels"),
        };
    }
    labels
}

impl Scrape {
    #[track_caller]
    fn of(address: SocketAddr) -> Scrape {
        let (head, body) = get(address, "/metrics");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("Content-Type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
        Scrape::parse(&body)
    }

    #[track_caller]
    fn parse(text: &str) -> Scrape {
        assert!(text.ends_with('\n'));
        let mut families: BTreeMap<String, Family> = BTreeMap::new();
        let mut current = String::new();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').expect("a help has a text");
                let kind = lines.next().and_then(|line| line.strip_prefix("# TYPE ")?.strip_prefix(name));
                let kind = kind.unwrap_or_else(|| panic!("no TYPE behind the HELP of {name}")).trim().to_owned();
                assert!(is_name(name) && help.ends_with('.') && !help.contains('\\'), "{line}");
                assert!(["counter", "gauge", "histogram"].contains(&&*kind), "{name}: {kind}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
                assert!(kind != "histogram" || name.ends_with("_seconds"), "{name} is a {kind}");
                let family = Family { kind, ..Family::default() };
                assert!(families.insert(name.to_owned(), family).is_none(), "{name} stands there twice");
                current = name.to_owned();
                continue;
            }
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
            let value: f64 = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
            let name = series.split('{').next().unwrap();
            let family = families.get_mut(&current).unwrap_or_else(|| panic!("before all families: {line}"));
            let suffixes: &[&str] = if family.kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(suffixes.iter().any(|suffix| *name == format!("{current}{suffix}")), "{line} below {current}");
            let inside = series[name.len()..].strip_prefix('{').map_or("", |rest| rest.strip_suffix('}').unwrap());
            family.labels.extend(labels(inside).into_iter().map(|(name, _)| name.to_owned()));
            assert!(value >= 0.0 && family.samples.insert(series.to_owned(), value).is_none(), "{line}");
        }
        let scrape = Scrape(families);
        scrape.check_histograms();
        scrape
    }

    /// Buckets add up, end with +Inf, and agree with the count.
    #[track_caller]
    fn check_histograms(&self) {
        for (name, family) in self.0.iter().filter(|(_, family)| family.kind == "histogram") {
            let mut by_labels: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
            for (series, value) in &family.samples {
                let Some(inside) = series.strip_prefix(&format!("{name}_bucket{{")) else { continue };
                let labels = labels(inside.strip_suffix('}').unwrap());
                let others: Vec<_> = labels.iter().filter(|(name, _)| *name != "le").collect();
                let others: Vec<_> = others.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
                let le = labels.iter().find(|(name, _)| *name == "le").expect("a bucket has a bound").1;
                by_labels.entry(others.join(",")).or_default().push((le.parse().unwrap(), *value));
            }
            for (labels, mut buckets) in by_labels {
                buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
                assert!(buckets.is_sorted_by(|one, other| one.1 <= other.1), "{name} {labels}: {buckets:?}");
                let (bound, all) = *buckets.last().unwrap();
                let braces = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
                assert_eq!((bound, all), (f64::INFINITY, family.samples[&format!("{name}_count{braces}")]));
                assert!(family.samples.contains_key(&format!("{name}_sum{braces}")));
            }
        }
    }

    /// The sum of all samples that have these labels: `name{a="b"}`, or `name` for all.
    #[track_caller]
    fn sum(&self, query: &str) -> f64 {
        let (name, inside) = query.split_once('{').unwrap_or((query, "}"));
        let wanted = labels(inside.strip_suffix('}').unwrap());
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        let family = self.0.get(name).or_else(|| self.0.get(base?));
        let samples = &family.unwrap_or_else(|| panic!("no {name}")).samples;
        let fits = |series: &str| {
            let (own, inside) = series.split_once('{').unwrap_or((series, "}"));
            let labels = labels(inside.strip_suffix('}').unwrap());
            own == name && wanted.iter().all(|label| labels.contains(label))
        };
        let found: Vec<f64> = samples.iter().filter(|(series, _)| fits(series)).map(|(_, value)| *value).collect();
        assert!(!found.is_empty(), "no {query}");
        found.iter().sum()
    }
}

/// Waits until a number is what it must be; what lies between a reply and its count is short.
#[track_caller]
fn expect(address: SocketAddr, query: &str, value: f64) {
    let mut last = f64::NAN;
    let deadline = Instant::now() + DEADLINE;
    while last != value {
        assert!(Instant::now() < deadline, "{query} is {last}, not {value}");
        last = Scrape::of(address).sum(query);
    }
}

#[track_caller]
fn expect_all(address: SocketAddr, wanted: &[(&str, f64)]) {
    wanted.iter().for_each(|(query, value)| expect(address, query, *value));
}

#[track_caller]
fn expect_some(address: SocketAddr, query: &str) {
    eventually(query, || Scrape::of(address).sum(query) > 0.0);
}

// -- what is counted ------------------------------------------------------------------------------

/// Alice and carol, the first account and the third, belong to the first reactor, bob and the absent one to the
/// second.
#[test]
fn known_traffic_gives_known_numbers() {
    let is_theirs = |seed: &u64| [1, 2, 3, 4].map(|user| Homes::new(*seed, 2).of_user(user)) == [0, 1, 0, 1];
    let seed = (0..).find(is_theirs).unwrap().to_string();
    let world = ALONE.own(&[&ANY_PORT[..], &["--home-seed", &seed]].concat());
    let at = world.server().monitor();
    let [mut alice, mut bob, mut carol] = ["alice", "bob", "carol"].map(|name| world.online(name));
    let absent = world.account("absent"); // on a connection that is closed by now
    for _ in 0..3 {
        assert!(alice.chat(bob.id(), "to the other reactor"));
    }
    for _ in 0..2 {
        assert!(alice.chat(carol.id(), "on this reactor"));
    }
    assert!(!alice.chat(absent.id, "to the store"));
    let group = alice.create_group(&world.name("group"));
    [&mut bob, &mut carol].into_iter().for_each(|member| member.join(group));
    assert_eq!(alice.group_chat(group, "to all")["delivered"], 2);
    assert_eq!(bob.refused(json!({"msgid": 6, "id": bob.id(), "name": "bob", "toid": 2_000_000_000, "msg": "x"})), 15);
    carol.logout();
    assert_eq!(carol.refused(json!({"msgid": 10, "id": 1, "groupid": group, "msg": "x"})), 13);
    assert_eq!(carol.refused(json!({"msgid": 77})), 11);
    expect_all(
        at,
        &[
            ("chat_connections", 3.0),
            ("chat_connections{reactor=\"0\"}", 2.0),
            ("chat_connections_accepted_total", 4.0),
            ("chat_connections_accepted_total{reactor=\"1\"}", 2.0),
            ("chat_connections_closed_total", 1.0),
            ("chat_connections_closed_total{reactor=\"1\",reason=\"closed_by_the_client\"}", 1.0),
            ("chat_connections_refused_total", 0.0),
            ("chat_accept_pauses_total", 0.0),
            ("chat_sessions", 2.0),
            ("chat_sessions{reactor=\"0\"}", 1.0),
            ("chat_messages_total{kind=\"chat\",path=\"same_reactor\"}", 2.0),
            ("chat_messages_total{kind=\"chat\",path=\"other_reactor\"}", 3.0),
            ("chat_messages_total{kind=\"chat\",path=\"stored\"}", 1.0),
            ("chat_messages_total{kind=\"group\",path=\"same_reactor\"}", 1.0),
            ("chat_messages_total{kind=\"group\",path=\"other_reactor\"}", 1.0),
            // Where the recipient belongs.
            ("chat_messages_total{reactor=\"0\"}", 3.0),
            ("chat_messages_total", 8.0),
            ("chat_requests_total{request=\"register\"}", 4.0),
            ("chat_requests_total{request=\"login\"}", 3.0),
            ("chat_requests_total{request=\"logout\"}", 1.0),
            ("chat_requests_total{request=\"chat\"}", 7.0),
            ("chat_requests_total{request=\"group_chat\"}", 2.0),
            ("chat_requests_total{request=\"create_group\"}", 1.0),
            ("chat_requests_total{request=\"join_group\"}", 2.0),
            ("chat_requests_total{request=\"unknown\"}", 1.0),
            ("chat_errors_total{errno=\"15\"}", 1.0),
            ("chat_errors_total{errno=\"13\"}", 1.0),
            ("chat_errors_total{errno=\"11\"}", 1.0),
            ("chat_errors_total", 3.0),
            // Four registrations, a group, two joins, three claims, a release, a message, and one without a recipient.
            ("chat_store_writes_total", 13.0),
            ("chat_store_failures_total", 0.0),
            ("chat_store_refusals_total", 0.0),
            // A login reads the account, then, for its reply, friends, groups and a page of messages together.
            ("chat_store_seconds_count{op=\"account\"}", 3.0),
            ("chat_store_seconds_count{op=\"load\"}", 3.0),
            ("chat_store_seconds_count{op=\"friends\"}", 0.0),
            ("chat_store_seconds_count{op=\"groups\"}", 0.0),
            ("chat_store_seconds_count{op=\"page\"}", 0.0),
            ("chat_store_seconds_count{op=\"members\"}", 1.0),
            // Passwords: four to be hashed, three to be verified.
            ("chat_jobs_total{pool=\"store\",queue=\"free\"}", 7.0),
            ("chat_job_wait_seconds_count{pool=\"store\",queue=\"free\"}", 7.0),
            ("chat_passwords_total{work=\"hashed\"}", 7.0),
            // The writes but for the registrations, the accounts, the replies, the members.
            ("chat_jobs_total{pool=\"store\",queue=\"lane\"}", 16.0),
            ("chat_jobs_waiting", 0.0),
            ("chat_jobs_pending", 0.0),
            ("chat_mailbox_letters", 0.0),
            ("chat_queued_bytes", 0.0),
            ("chat_slow_consumers_total", 0.0),
        ],
    );
    for some in [
        "chat_store_seconds_sum{op=\"write\"}",
        "chat_job_wait_seconds_sum{queue=\"lane\"}",
        "chat_reactor_turns_total{reactor=\"1\"}",
        "chat_reactor_wakes_total{reactor=\"1\"}",
        "chat_reactor_letters_total{reactor=\"1\"}",
        "process_resident_memory_bytes",
        "process_start_time_seconds",
        "process_max_fds",
    ] {
        expect_some(at, some);
    }
    assert!(Scrape::of(at).sum("process_open_fds") as usize <= world.server().descriptors() + 8);
}

#[test]
fn every_byte_counts_once() {
    let world = ALONE.prepared("export CHAT_METRICS=127.0.0.1:0", &[]);
    let at = world.server().monitor();
    let mut client = world.client().framed(Framing::Lf);
    for n in 1..=3 {
        client.send(r#"{"msgid":202}"#);
        client.expect_bytes("{\"msgid\":203}\n");
        let bytes = 14.0 * f64::from(n);
        expect_all(at, &[("chat_received_bytes_total", bytes), ("chat_sent_bytes_total", bytes)]);
    }
    expect(at, "chat_requests_total{request=\"ping\"}", 3.0);
    client.send(r#"{"msgid":203}"#);
    client.finish();
    client.expect_end();
    expect_all(at, &[("chat_requests_total{request=\"pong\"}", 1.0), ("chat_connections", 0.0)]);
}

#[test]
fn what_limits_refuse_is_counted_by_limit() {
    let limits = "--max-connections-per-address 2 --max-message-rate 2 --max-failed-logins 1 --max-registrations 3 \
                  --max-offline 1 --max-friends 1 --max-groups 1 --max-group-size 1";
    let world = ALONE.own(&[&ANY_PORT[..], &limits.split_whitespace().collect::<Vec<_>>()].concat());
    let at = world.server().monitor();
    let (mut user, mut other) = (world.online("user"), world.client());
    let friends = [(); 2].map(|()| other.register(&world.name("friend"), "secret"));
    let register = json!({"msgid": 4, "name": world.name("late"), "password": "p"});
    assert_eq!(other.refused(register), 20);
    assert_eq!(world.client().recv()["errno"], 20);
    let wrong = Account { password: "guess".into(), ..friends[1].clone() };
    assert_eq!(other.try_login(&wrong)["errno"], 1);
    assert_eq!(other.try_login(&wrong)["errno"], 20);
    let id = user.id();
    let add = |friend: &Account| json!({"msgid": 7, "id": id, "friendid": friend.id});
    user.must(add(&friends[0]));
    assert_eq!(user.refused(add(&friends[1])), 20);
    let group = user.create_group(&world.name("group"));
    assert_eq!(user.refused(json!({"msgid": 8, "id": id, "groupname": world.name("g"), "groupdesc": ""})), 20);
    other.login(&friends[0]);
    assert_eq!(other.refused(json!({"msgid": 9, "id": other.id(), "groupid": group})), 20);
    user.chat(friends[1].id, "kept");
    assert_eq!(user.refused(user.chat_to(friends[1].id, "not kept")), 20);
    // Twenty at once; a few have come by now.
    let pongs: Vec<i64> = (0..20).map(|_| user.start(json!({"msgid": 202}))).collect();
    let refused = pongs.into_iter().filter(|seq| user.reply(*seq)["errno"] == 20).count();
    assert!(refused > 0);
    let limited = |limit: &str| format!("chat_limited_total{{limit=\"{limit}\"}}");
    for limit in ["failed_logins", "registrations", "offline_messages", "friends", "groups", "group_size"] {
        expect(at, &limited(limit), 1.0);
    }
    expect(at, &limited("message_rate"), refused as f64);
    expect(at, "chat_connections_refused_for_address_total", 1.0);
}

#[test]
fn connections_are_counted_by_why_they_were_closed() {
    let world = ALONE.own(&[&ANY_PORT[..], &["--login-timeout", "1s"]].concat());
    let at = world.server().monitor();
    world.client().reset();
    drop(world.client());
    let mut broken = world.client();
    broken.send("hello");
    assert_eq!(broken.recv()["errno"], 10);
    broken.expect_end();
    let mut large = world.client();
    large.send("{".to_owned() + &" ".repeat(9000));
    assert_eq!(large.recv()["errno"], 19);
    large.expect_end();
    let mut silent = world.client();
    assert_eq!(silent.recv()["errno"], 20);
    silent.expect_end();
    expect_all(
        at,
        &[
            ("chat_connections_closed_total{reason=\"socket_error\"}", 1.0),
            ("chat_connections_closed_total{reason=\"closed_by_the_client\"}", 1.0),
            ("chat_connections_closed_total{reason=\"input_could_not_be_followed\"}", 1.0),
            ("chat_connections_closed_total{reason=\"message_too_large\"}", 1.0),
            ("chat_connections_closed_total{reason=\"no_login_in_time\"}", 1.0),
            ("chat_connections_closed_total", 5.0),
            ("chat_errors_total{errno=\"10\"}", 1.0),
            ("chat_errors_total{errno=\"19\"}", 1.0),
        ],
    );
    expect(at, "chat_connections", 0.0);
}

#[test]
fn who_is_not_accepted_is_counted_and_so_are_the_acceptors_pauses() {
    let world = ALONE.own(&[&ANY_PORT[..], &["--max-connections", "2"]].concat());
    let at = world.server().monitor();
    let mut client = world.online("client");
    let pid = i32::try_from(world.server().pid()).unwrap();
    let (mut soft, mut hard) = (0, 0);
    rlimit::prlimit(pid, Resource::NOFILE, None, Some((&mut soft, &mut hard))).unwrap();
    let limit = |soft: u64| rlimit::prlimit(pid, Resource::NOFILE, Some((soft, hard)), None).unwrap();
    // No descriptor is left: the next accept fails, and metrics cannot be scraped either.
    limit(3);
    let mut late = world.client();
    eventually("the pause in the log", || world.server().log_tail().contains("cannot accept"));
    client.sync();
    limit(soft);
    late.sync();
    expect_some(at, "chat_accept_pauses_total");
    let mut refused = world.client();
    assert_eq!(refused.recv()["errno"], 20);
    refused.expect_end();
    expect_all(at, &[("chat_connections_refused_total", 1.0), ("chat_connections", 2.0)]);
}

#[test]
fn who_does_not_read_is_counted_and_so_is_what_waits_for_it() {
    let world = ALONE.own(&[&ANY_PORT[..], &["--high-water", "65536"]].concat());
    let at = world.server().monitor();
    let mut sender = world.online("sender");
    let sleeper = world.account("sleeper");
    let mut slow = world.client_with_receive_buffer(0, 4096);
    slow.login(&sleeper);
    let text = "x".repeat(8000);
    // More than the kernel takes: then nothing moves for a second, or too much waits.
    let mut slowness = 0.0;
    while slowness == 0.0 {
        for _ in 0..16 {
            let chat = sender.chat_to(sleeper.id, &text);
            sender.post(&chat);
        }
        sender.sync();
        slowness = Scrape::of(at).sum("chat_slow_consumers_total{cause=\"high_water\"}");
    }
    expect_some(at, "chat_messages_total{path=\"stored\"}");
    // Its 10 s begin when it goes over the mark.
    expect(at, "chat_connections_closed_total{reason=\"slow_consumer_high_water\"}", 1.0);
    let whose = format!("was the connection of user {}\n", sleeper.id);
    let words = ["as a slow consumer", "the high-water mark of 65536 bytes", &whose];
    eventually("the reason in the log", || {
        let log = world.server().log_tail();
        words.iter().all(|words| log.contains(words))
    });
    expect(at, "chat_queued_bytes", 0.0);
    drop(slow);
}

#[test]
fn what_waits_for_all_together_is_bounded_and_counted() {
    const MOST: usize = 1 << 20;
    let world = ALONE.own(&[&ANY_PORT[..], &["--max-buffered", &MOST.to_string()]].concat());
    let at = world.server().monitor();
    let mut sender = world.online("sender");
    let sleepers = world.accounts("sleeper", 16);
    let log_in = |sleeper: &Account| {
        let mut client = world.client_with_receive_buffer(0, 4096);
        client.login(sleeper);
        client
    };
    let mut slow: Vec<_> = sleepers.iter().map(log_in).collect();
    // For each half of its own mark, and for all eight times what may wait.
    let text = "x".repeat(8000);
    for _ in 0..64 {
        for sleeper in &sleepers {
            let chat = sender.chat_to(sleeper.id, &text);
            sender.post(&chat);
        }
    }
    sender.sync();
    // All queues are looked at ten times a second.
    expect_some(at, "chat_slow_consumers_total{cause=\"all_buffers\"}");
    let queued = || Scrape::of(at).sum("chat_queued_bytes");
    eventually("no more to wait than may", || queued() <= MOST as f64);
    for client in &mut slow {
        assert_eq!(client.texts(64), vec![text.clone(); 64]);
    }
    expect(at, "chat_queued_bytes", 0.0);
}

#[test]
fn who_has_stopped_reading_is_counted_after_a_second() {
    let world = ALONE.own(&ANY_PORT);
    let at = world.server().monitor();
    let mut sender = world.online("sender");
    let sleeper = world.account("sleeper");
    let mut slow = world.client_with_receive_buffer(0, 4096);
    slow.login(&sleeper);
    // More than the kernel takes, and far below the mark.
    let text = "x".repeat(8000);
    for _ in 0..40 {
        let chat = sender.chat_to(sleeper.id, &text);
        sender.post(&chat);
    }
    sender.sync();
    let scrape = Scrape::of(at);
    // On a busy machine the second may be over by now.
    let is_over = scrape.sum("chat_slow_consumers_total") > 0.0;
    assert!(is_over || scrape.sum("chat_queued_bytes") > 0.0);
    expect(at, "chat_slow_consumers_total{cause=\"stalled\"}", 1.0);
    assert_eq!(slow.texts(40), vec![text; 40]);
    expect_all(at, &[("chat_queued_bytes", 0.0), ("chat_slow_consumers_total", 1.0)]);
    expect_some(at, "chat_messages_total{path=\"stored\"}");
}

#[test]
fn what_goes_between_nodes_is_counted_on_both() {
    let world = CLUSTER.own(&ANY_PORT);
    let (here, there) = (world.server_on(0).monitor(), world.server_on(1).monitor());
    let (mut alice, mut bob) = (world.online("alice"), world.online_on(1, "bob"));
    for _ in 0..5 {
        assert!(alice.chat(bob.id(), "over the bus"));
    }
    let group = alice.create_group(&world.name("group"));
    bob.join(group);
    assert_eq!(alice.group_chat(group, "over the bus")["delivered"], 1);
    expect_all(
        here,
        &[
            ("chat_bus_up", 1.0),
            ("chat_messages_total{kind=\"chat\",path=\"other_node\"}", 5.0),
            ("chat_messages_total{kind=\"group\",path=\"other_node\"}", 1.0),
            ("chat_messages_total{path=\"stored\"}", 0.0),
            ("chat_messages_from_nodes_total", 0.0),
            ("chat_node_answer_seconds_count", 6.0),
            ("chat_node_questions_pending", 0.0),
            ("chat_bus_failures_total", 0.0),
            ("chat_bus_outages_total", 0.0),
            ("chat_jobs_waiting{pool=\"bus\"}", 0.0),
        ],
    );
    expect_all(there, &[("chat_messages_from_nodes_total", 6.0), ("chat_messages_total", 0.0)]);
    for (at, query) in [
        (here, "chat_bus_exchange_seconds_sum"),
        (here, "chat_bus_commands_total"),
        (here, "chat_bus_sent_bytes_total"),
        (here, "chat_job_wait_seconds_count{pool=\"bus\",queue=\"lane\"}"),
        (there, "chat_bus_messages_total"),
        (there, "chat_bus_received_bytes_total"),
    ] {
        expect_some(at, query);
    }
    all_that_is_told_is_documented(&Scrape::of(here));
}

/// The documents' table has a row for each family, with its labels, the READMEs' picture has every thread, and the
/// page shows no family that is not exported.
#[track_caller]
fn all_that_is_told_is_documented(scrape: &Scrape) {
    type Rows = BTreeMap<String, BTreeSet<String>>;
    let rows = |document: &str| -> Rows {
        let rows = document.lines().filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split('|');
            let name = cells.next()?.trim().strip_suffix('`')?;
            let is_metric = name.starts_with("chat_") || name.starts_with("process_");
            let labels = cells.next()?.split([',', '、']).map(|label| label.trim().trim_matches('`').to_owned());
            is_metric.then(|| (name.to_owned(), labels.filter(|label| !label.is_empty()).collect()))
        });
        rows.collect()
    };
    let exported = scrape.0.iter().map(|(name, family)| {
        let labels = family.labels.iter().filter(|label| *label != "le");
        (name.clone(), labels.cloned().collect())
    });
    let exported: Rows = exported.collect();
    for document in [include_str!("../docs/OPERATING.md"), include_str!("../docs/OPERATING.zh-CN.md")] {
        assert_eq!(rows(document), exported);
    }
    for readme in [include_str!("../README.md"), include_str!("../README.zh-CN.md")] {
        let picture = readme.split("```").find(|block| block.contains("reactor-0")).expect("a picture of the threads");
        let shown: BTreeSet<&str> = picture.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).collect();
        for series in scrape.0["chat_thread_cpu_seconds_total"].samples.keys() {
            let thread = series.split('"').nth(1).expect("the name of a thread");
            // Of several threads of a kind the first is shown; `main` has the name of the program.
            let kind = thread.trim_end_matches(|c: char| c.is_ascii_digit());
            let first = if kind == thread { thread.replace("chat-server", "main") } else { format!("{kind}0") };
            assert!(shown.contains(&*first), "{thread} is not in the picture");
        }
    }
    let page = include_str!("../src/server/monitor/page.html");
    let shown = page.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let shown: Vec<&str> = shown.filter(|w| w.starts_with("chat_") || w.starts_with("process_")).collect();
    assert!(shown.len() > 20);
    shown.iter().for_each(|name| assert!(scrape.0.contains_key(*name), "the page shows {name}"));
}

// -- health ---------------------------------------------------------------------------------------

#[track_caller]
fn expect_not_ready(at: SocketAddr, reason: &str) {
    let mut last = Reply::default();
    eventually(reason, || {
        last = get(at, "/readyz");
        assert_eq!(status(&get(at, "/healthz")), "200");
        status(&last) == "503" && last.1.contains(reason)
    });
    assert!(last.1.starts_with("not ready: ") && last.1.lines().count() == 1, "{last:?}");
}

#[track_caller]
fn expect_ready(at: SocketAddr) {
    eventually("readiness", || get(at, "/readyz").1 == "ready\n");
    assert_eq!(status(&get(at, "/readyz")), "200");
}

#[test]
fn a_node_is_ready_while_its_store_and_its_bus_are_there_and_it_does_not_end() {
    let world = CLUSTER.with_own_mariadb(&ANY_PORT);
    let at = world.server().monitor();
    expect_ready(at);
    world.mariadb().kill();
    expect_not_ready(at, "storage is unavailable");
    world.mariadb().restart();
    expect_ready(at);
    world.redis().kill();
    expect_not_ready(at, "the bus is down");
    expect_all(at, &[("chat_bus_up", 0.0), ("chat_bus_outages_total", 1.0)]);
    world.redis().restart();
    expect_ready(at);
    expect(at, "chat_bus_up", 1.0);
    let _user = world.online("user");
    world.mariadb().signal("STOP");
    let asked = Instant::now();
    expect_not_ready(at, "the store does not answer");
    assert!(asked.elapsed() < Duration::from_secs(5), "nobody waits for a store that hangs");
    assert!(try_get(at, "/metrics").is_ok());
    // A user cannot be logged out while the store hangs, so the end takes its time.
    world.server().signal("TERM");
    expect_not_ready(at, "shutting down");
    world.wait();
    assert!(TcpStream::connect(at).is_err());
}

// -- HTTP -----------------------------------------------------------------------------------------

#[test]
fn only_what_is_there_can_be_asked_for_and_only_asked_for() {
    let world = ALONE.own(&ANY_PORT);
    let at = world.server().monitor();
    let page = get(at, "/");
    assert!(page.0.contains("Content-Type: text/html") && page.1.trim_end().ends_with("</html>"), "{page:?}");
    // The page needs no other server.
    assert!(!page.1.contains("://") && !page.1.contains("src="));
    assert_eq!(get(at, "/healthz").1, "alive\n");
    expect_ready(at);
    assert_eq!(status(&get(at, "/metrics?name=chat_sessions")), "200");
    assert_eq!(status(&get(at, "/passwd")), "404");
    let metrics = ask(at, "HEAD /metrics HTTP/1.0\r\n\r\n").unwrap();
    assert_eq!((status(&metrics), &*metrics.1), ("200", ""));
    let post = ask(at, "POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n").unwrap();
    assert!(status(&post) == "405" && post.0.contains("Allow: GET, HEAD"), "{post:?}");
    for request in
        ["hello\r\n\r\n", "GET * HTTP/1.1\r\n\r\n", "GET / HTTP/3\r\n\r\n", "GET  / HTTP/1.1\r\n\r\n", "\u{ff}\r\n\r\n"]
    {
        assert_eq!(status(&ask(at, request).unwrap()), "400", "{request:?}");
    }
    assert_eq!(ask(at, "GET /healthz HTTP/1.0\n\n").unwrap().1, "alive\n");
    // In two parts, and more behind it than was asked for.
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"GET /healthz HT").unwrap();
    stream.flush().unwrap();
    stream.write_all(b"TP/1.1\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n").unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    assert!(reply.ends_with("\r\n\r\nalive\n"), "{reply}");
}

#[test]
fn whatever_is_valid_http_is_answered_however_it_is_cut() {
    let world = ALONE.own(&ANY_PORT);
    let at = world.server().monitor();
    for request in [
        format!("GET http://{at}/healthz HTTP/1.1\r\nHost: {at}\r\n\r\n"),
        "GET HTTP://somewhere.else/healthz?x=http://y/ HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        "\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        "\n\r\n\nGET /health%7A HTTP/1.0\nhOST:\n\n".to_owned(),
        "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\nExpect: 100-continue\r\n\
         Content-Length: 5\r\n\r\nhello"
            .to_owned(),
    ] {
        assert_eq!(ask(at, &request).unwrap().1, "alive\n", "{request:?}");
        for cut in [1, 2, 3, request.len() / 2] {
            let mut stream = TcpStream::connect(at).unwrap();
            stream.set_nodelay(true).unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            stream.write_all(&request.as_bytes()[..cut]).unwrap();
            // A round trip in between: the first part has most likely been read by then.
            get(at, "/healthz");
            stream.write_all(&request.as_bytes()[cut..]).unwrap();
            let mut reply = String::new();
            stream.read_to_string(&mut reply).unwrap();
            assert!(reply.starts_with("HTTP/1.1 200 OK\r\n") && reply.ends_with("\r\n\r\nalive\n"), "{reply}");
            assert!(reply.contains("\r\nConnection: close\r\n"), "{reply}");
        }
    }
    let page = ask(at, format!("GET http://{at} HTTP/1.1\r\nHost: {at}\r\n\r\n")).unwrap();
    assert!(page.1.trim_end().ends_with("</html>"), "{page:?}");
    let head = ask(at, format!("HEAD http://{at}/readyz HTTP/1.1\r\nHost: {at}\r\n\r\n")).unwrap();
    assert!(["200", "503"].contains(&status(&head)) && head.1.is_empty(), "{head:?}");
    for (request, code) in [
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505"),
        ("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", "405"),
        ("GET ftp://x/metrics HTTP/1.1\r\nHost: x\r\n\r\n", "400"),
    ] {
        let reply = ask(at, request).unwrap();
        assert!(status(&reply) == code && reply.0.contains("\r\nAllow: GET, HEAD"), "{request:?}: {reply:?}");
    }
    let long = ask(at, [&b"GET /"[..], &[b'x'; 9000], b" HTTP/1.1\r\n\r\n"].concat());
    assert_eq!(status(&long.unwrap()), "414");
}

#[test]
fn many_may_ask_at_once() {
    let world = ALONE.own(&ANY_PORT);
    let at = world.server().monitor();
    let mut client = world.online("client");
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(move || {
                for _ in 0..10 {
                    assert!(Scrape::of(at).sum("chat_reactor_turns_total") > 0.0);
                    assert_eq!(status(&get(at, "/readyz")), "200");
                }
            });
        }
        (0..20).for_each(|_| client.sync());
    });
}

#[test]
fn who_asks_slowly_or_too_much_or_does_not_read_hurts_nobody() {
    let world = ALONE.own(&ANY_PORT);
    let at = world.server().monitor();
    let mut client = world.online("client");
    get(at, "/metrics");
    let before = world.server().descriptors();
    let connect = |request: &[u8]| {
        let mut stream = TcpStream::connect(at).expect("the address is listened on");
        let _ = stream.write_all(request);
        stream
    };
    // More than may be open, hostile in three different forms; a client that comes then is served all the same.
    let mut hostile: Vec<TcpStream> = Vec::new();
    for n in 0..200 {
        hostile.push(connect([&b"GET /metrics HTTP/1.1\r\nX: "[..], b"", b"GET /metrics HTTP/1.1\r\n\r\n"][n % 3]));
        if n % 20 == 0 {
            assert!(Scrape::of(at).sum("chat_sessions") == 1.0);
            client.sync();
        }
    }
    let large = ask(at, [&b"GET / HTTP/1.1\r\nX: "[..], &[b'x'; 9000]].concat());
    assert_eq!(status(&large.unwrap()), "431");
    let (memory, mut endless) = (world.server().resident_kib(), connect(b"GET / HTTP/1.1\r\nX: "));
    // Until the server ends it.
    while endless.write_all(&[b'x'; 64 * 1024]).is_ok() {}
    assert!(world.server().resident_kib() < memory + 8 * 1024);
    expect(at, "chat_sessions", 1.0);
    client.sync();
    // A request that does not come is not waited for.
    eventually("the descriptors to be closed", || world.server().descriptors() <= before + 4);
    drop(hostile);
}

#[test]
fn an_address_in_use_is_one_line_and_status_2() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let launch = Launch {
        store: ALONE.new_store(dir.path()),
        reactors: 1,
        workers: 1,
        flags: vec!["--metrics".to_owned(), address.clone()],
        setup: String::new(),
        port: 0,
    };
    let output = refused_start(&launch);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), text.lines().count()), (Some(2), 1), "{text}");
    assert!(text.contains(&address) && text.contains("--metrics") && text.contains("in use"), "{text}");
    // Before anything else is done.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
