//! However the frames of a client are cut, the same is found in them; a message keeps to its limit and is UTF-8, and one
//! that is not taken is found again. What the server writes is a frame that is read back as it was.
//!
//! The input is a list of chunk sizes, ended by 0 or by the 32nd, and then the stream.

use chat_server::wire::websocket::{Failed, Found, MAX_CONTROL, Prefix, WebSocket, write_pong};

use super::splitter::cut;

/// Small enough that the fuzzer comes to pass it.
const MAX_MESSAGE: usize = 64;
const MAX_SIZES: usize = 32;

#[derive(Debug, PartialEq)]
enum Event {
    Text(String),
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>),
}

/// What was found, and how it failed, in a stream that comes in these chunks. `twice`: each message is given back once.
fn read<'a>(chunks: impl Iterator<Item = &'a [u8]>, twice: bool) -> (Vec<Event>, Option<Failed>) {
    let (mut socket, mut input, mut events) = (WebSocket::default(), Vec::new(), Vec::new());
    for chunk in chunks {
        input.extend_from_slice(chunk);
        loop {
            let (done, event) = match socket.next(&input, MAX_MESSAGE) {
                Ok(Found::Partial { taken }) => {
                    input.drain(..taken);
                    break;
                }
                Ok(Found::Text { taken }) => {
                    if twice {
                        let message = socket.take();
                        socket.put_back(message, taken);
                        assert_eq!(socket.next(&input, MAX_MESSAGE), Ok(Found::Text { taken }));
                    }
                    let message = socket.take();
                    assert!(message.len() <= MAX_MESSAGE);
                    (taken, Event::Text(String::from_utf8(message).expect("UTF-8")))
                }
                Ok(Found::Ping { taken, payload }) => {
                    assert!(payload.len() <= MAX_CONTROL);
                    let mut pong = Vec::new();
                    write_pong(&mut pong, &payload);
                    assert_eq!(pong, [&[0x8a, payload.len() as u8], &payload[..]].concat());
                    (taken, Event::Ping(payload.to_vec()))
                }
                Ok(Found::Pong { taken }) => (taken, Event::Pong),
                Ok(Found::Close { taken, code }) => (taken, Event::Close(code)),
                Err(failed) => return (events, Some(failed)),
            };
            assert!(done > 0, "for ever");
            input.drain(..done);
            events.push(event);
        }
        assert!(input.len() < 14 + MAX_CONTROL, "{} bytes are left to the caller", input.len());
    }
    (events, None)
}

/// What the server writes before a message, with a mask put in, as a client would send it.
fn masked(message: &[u8]) -> Vec<u8> {
    let mut frame = Prefix::of_text(message.len()).to_vec();
    frame[1] |= 0x80;
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(message);
    frame
}

pub fn run(data: &[u8]) {
    let listed = data.iter().take(MAX_SIZES).take_while(|&&size| size != 0).count();
    let (sizes, rest) = data.split_at(listed);
    let stream = rest.strip_prefix(&[0]).unwrap_or(rest);

    let whole = read(std::iter::once(stream), false);
    assert_eq!(read(cut(stream, sizes), true), whole);
    assert_eq!(read(stream.chunks(1), true), whole);

    let text = String::from_utf8_lossy(&stream[..stream.len().min(MAX_MESSAGE / 3)]).into_owned();
    let frame = masked(text.as_bytes());
    assert_eq!(read(cut(&frame, sizes), false), (vec![Event::Text(text)], None));
}
