//! However the head of a request is cut, the same is said of it, within its bounds, and never past its end.

use chat_server::wire::http::{Asked, Head, MAX_HEAD};

pub fn run(data: &[u8]) {
    let origins = ["https://a.example".to_owned()];
    let whole = Head::read(data, &origins);
    // Wherever the stream is cut, nothing is known yet or the same is.
    let decided = (0..=data.len()).find(|&end| {
        let part = Head::read(&data[..end], &origins);
        assert!(part == Ok(None) || part == whole, "{part:?} after {end} bytes, then {whole:?}");
        part != Ok(None)
    });
    match whole {
        Ok(None) => assert!(data.len() < MAX_HEAD, "for ever"),
        Ok(Some(Head { length, asked })) => {
            assert_eq!(decided, Some(length), "neither before its end nor behind it");
            assert!(length <= MAX_HEAD && data.starts_with(b"GET /"));
            if let Asked::WebSocket { accept } = asked {
                assert_eq!(accept.len(), 28, "20 bytes in base64");
            }
        }
        Err(_) => {}
    }
}
