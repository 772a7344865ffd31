//! What the wire costs for one message, or for one segment of them.

use std::hint::black_box;

use chat_server::wire::{Request, Split, Splitter, reply, rewrite_chat};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const LOGIN: &[u8] = br#"{"msgid":1,"id":10001,"password":"correct horse"}"#;
const CHAT: &[u8] = br#"{"msgid":6,"id":10001,"name":"zhang san","toid":10002,"msg":"see you at the station at half past seven, platform two","time":"2026-01-02 03:04:05"}"#;
const ESCAPES: &[u8] = br#"{"msgid":6,"id":10001,"name":"zhang san","toid":10002,"msg":"\u4f60\u597d \"there\"\n\ud83d\ude00 C:\\chat","time":"2026-01-02 03:04:05"}"#;

const MAX_OBJECT: usize = 64 * 1024;

/// Messages as the C++ client sends them: each with a NUL behind it.
fn stream(messages: usize) -> Vec<u8> {
    [CHAT, b"\0"].concat().repeat(messages)
}

/// Takes all objects out of `input`, of which `cut` bytes more arrive each time. Returns how many.
fn split(input: &[u8], cut: usize) -> usize {
    let (mut splitter, mut from, mut arrived, mut found) = (Splitter::default(), 0, 0, 0);
    while arrived < input.len() {
        arrived = input.len().min(arrived + cut);
        loop {
            match splitter.next(&input[from..arrived], MAX_OBJECT) {
                Ok(Split::Object { end, .. }) => {
                    from += end;
                    found += 1;
                }
                Ok(Split::Partial { skip }) => {
                    from += skip;
                    break;
                }
                Err(broken) => panic!("{broken}"),
            }
        }
    }
    found
}

fn splitting(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("splitter");
    for (name, messages, cut) in
        [("whole", 1, usize::MAX), ("16 in one segment", 16, usize::MAX), ("cut at 7 bytes", 1, 7)]
    {
        let input = stream(messages);
        let cut = cut.min(input.len());
        assert_eq!(split(&input, cut), messages);
        group.throughput(Throughput::Bytes(input.len() as u64));
        group.bench_function(name, |bencher| bencher.iter(|| split(black_box(&input), cut)));
    }
    group.finish();
}

fn parsing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse");
    for (name, object) in [("chat", CHAT), ("login", LOGIN), ("chat with escapes", ESCAPES)] {
        assert!(Request::parse(object).is_ok());
        group.throughput(Throughput::Bytes(object.len() as u64));
        group.bench_function(name, |bencher| bencher.iter(|| Request::parse(black_box(object)).is_ok()));
    }
    group.finish();
}

fn rewriting(criterion: &mut Criterion) {
    let request = Request::parse(CHAT).expect("the chat parses");
    let chat = request.chat().expect("it is a chat");
    let mut out = Vec::with_capacity(256);
    criterion.bench_function("rewrite_chat", |bencher| {
        bencher.iter(|| {
            out.clear();
            rewrite_chat(black_box(CHAT), chat, "li si", "2026-01-02 03:04:05", &mut out);
        });
    });
}

fn acknowledging(criterion: &mut Criterion) {
    let mut out = Vec::with_capacity(256);
    criterion.bench_function("ack_chat", |bencher| {
        bencher.iter(|| {
            out.clear();
            reply::ack_chat(&mut out, black_box(12345), true);
        });
    });
}

criterion_group!(benches, splitting, parsing, rewriting, acknowledging);
criterion_main!(benches);
