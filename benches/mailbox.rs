//! What a letter to another thread costs, and what it saves to post several at once.

use std::hint::black_box;

use chat_server::reactor::Mailbox;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use mio::Poll;

/// About as large as a letter that carries a chat.
type Letter = [u64; 8];

const LETTER: Letter = [7; 8];

fn posting(criterion: &mut Criterion) {
    let poll = Poll::new().expect("a poll");
    let mailbox = Mailbox::new(poll.registry()).expect("a mailbox");
    let mut batch: Vec<Letter> = Vec::new();
    let mut group = criterion.benchmark_group("mailbox");
    for letters in [1, 16, 64] {
        group.throughput(Throughput::Elements(letters));
        group.bench_function(format!("{letters} posted singly, then taken"), |bencher| {
            bencher.iter(|| {
                (0..letters).for_each(|_| mailbox.post(black_box(LETTER)));
                mailbox.take(&mut batch);
                black_box(&batch);
                batch.clear();
            });
        });
        group.bench_function(format!("{letters} posted together, then taken"), |bencher| {
            let together = || vec![LETTER; letters as usize];
            let post_and_take = |mut letters: Vec<Letter>| {
                mailbox.post_all(&mut letters);
                mailbox.take(&mut batch);
                black_box(&batch);
                batch.clear();
                letters
            };
            bencher.iter_batched(together, post_and_take, BatchSize::SmallInput);
        });
    }
    // Letters of another sender wait there: no wake is needed.
    group.throughput(Throughput::Elements(1));
    group.bench_function("1 posted behind others", |bencher| {
        mailbox.post(LETTER);
        bencher.iter_batched(|| LETTER, |letter| mailbox.post(letter), BatchSize::NumIterations(10_000));
        mailbox.take(&mut batch);
        batch.clear();
    });
    group.finish();
}

criterion_group!(benches, posting);
criterion_main!(benches);
