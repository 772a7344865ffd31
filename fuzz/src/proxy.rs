//! However a PROXY header is cut, it is read the same, within its bounds, and never past its end.

use chat_server::wire::ProxyHeader;
use chat_server::wire::proxy::{MAX_V1, MAX_V2_REST};

pub fn run(data: &[u8]) {
    let whole = ProxyHeader::parse(data);
    // Wherever the stream is cut, nothing is known yet or the same is.
    let decided = (0..=data.len()).find(|&end| {
        let part = ProxyHeader::parse(&data[..end]);
        assert!(part == Ok(None) || part == whole, "{part:?} after {end} bytes, then {whole:?}");
        part != Ok(None)
    });
    match whole {
        Ok(None) => assert!(data.len() < 16 + MAX_V2_REST, "for ever"),
        Ok(Some(header)) => {
            assert_eq!(decided, Some(header.length), "neither before its end nor behind it");
            let bound = if data.starts_with(b"PROXY ") { MAX_V1 } else { 16 + MAX_V2_REST };
            assert!(header.length <= bound, "{header:?}");
        }
        Err(_) => {}
    }
}
