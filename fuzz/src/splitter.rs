//! However the stream is cut, the splitter finds the same objects and ends in the same error.
//!
//! The input is a list of chunk sizes, ended by 0 or by the 32nd, and then the stream.

use chat_server::wire::{Broken, Split, Splitter};

/// Small enough that the fuzzer comes to pass it.
const MAX_OBJECT: usize = 64;
const MAX_SIZES: usize = 32;

/// What one reading of a stream came to.
#[derive(Debug, PartialEq)]
struct Reading {
    objects: Vec<Vec<u8>>,
    broken: Option<Broken>,
    inside_object: bool,
}

/// Feeds a stream chunk by chunk, as a connection does: what is left over stays in front.
fn read<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> Reading {
    let (mut splitter, mut input) = (Splitter::default(), Vec::new());
    let mut reading = Reading { objects: Vec::new(), broken: None, inside_object: false };
    for chunk in chunks {
        input.extend_from_slice(chunk);
        loop {
            match splitter.next(&input, MAX_OBJECT) {
                Ok(Split::Object { start, end }) => {
                    reading.objects.push(input[start..end].to_vec());
                    input.drain(..end);
                }
                Ok(Split::Partial { skip }) => {
                    input.drain(..skip);
                    break;
                }
                Err(broken) => {
                    reading.broken = Some(broken);
                    return reading;
                }
            }
        }
    }
    reading.inside_object = splitter.inside_object();
    reading
}

/// Cuts `stream` into chunks of `sizes`, over and over; of 7 bytes where there are none.
pub(crate) fn cut<'a>(mut stream: &'a [u8], sizes: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let mut sizes = sizes.iter().copied().chain(sizes.is_empty().then_some(7)).cycle();
    std::iter::from_fn(move || {
        let (chunk, rest) = stream.split_at_checked(sizes.next()?.into()).unwrap_or((stream, &[]));
        stream = rest;
        (!chunk.is_empty()).then_some(chunk)
    })
}

pub fn run(data: &[u8]) {
    let listed = data.iter().take(MAX_SIZES).take_while(|&&size| size != 0).count();
    let (sizes, rest) = data.split_at(listed);
    let stream = rest.strip_prefix(&[0]).unwrap_or(rest);

    let whole = read(std::iter::once(stream));
    for object in &whole.objects {
        assert!(object.len() <= MAX_OBJECT && object.starts_with(b"{"), "not an object: {object:?}");
    }
    assert_eq!(read(cut(stream, sizes)), whole);
    assert_eq!(read(stream.chunks(1)), whole);
}
