//! The PROXY protocol's header, by which a proxy reports whose connection it passes on.
//!
//! Version 1 is a line of text (nginx), version 2 is binary (HAProxy and others); both stand once,
//! before everything else. <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>

use std::net::{IpAddr, SocketAddr};

use memchr::memchr2;

/// The longest line of version 1, its CR LF included.
pub const MAX_V1: usize = 107;
/// The most that may follow the first 16 bytes of version 2: addresses, and extensions that are
/// skipped. Those of a proxy that passes on TLS with client certificates take a few hundred bytes.
pub const MAX_V2_REST: usize = 4096;

const V1_BEGINS: &[u8] = b"PROXY ";
const V2_BEGINS: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// [`V2_BEGINS`], version and command, family, and the length of what follows.
const V2_FIXED: usize = 16;

/// A header that is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProxyHeader {
    /// How much of the input it takes.
    pub length: usize,
    /// The client's own address; `None` where the proxy speaks for itself or cannot tell.
    pub source: Option<SocketAddr>,
}

/// Why there is no header; what follows cannot be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadHeader {
    #[error("a PROXY header must come first")]
    Missing,
    #[error("the PROXY header is malformed")]
    Malformed,
    #[error("the PROXY header is too long")]
    TooLong,
}

impl ProxyHeader {
    /// Reads the header at the front of `input`; `None`: more is needed.
    ///
    /// There is no state to keep: the caller passes the same bytes again, with whatever has come
    /// since behind them. What was said of the shorter input, other than `None`, holds for the longer.
    pub fn parse(input: &[u8]) -> Result<Option<ProxyHeader>, BadHeader> {
        if begins_like(input, V1_BEGINS) {
            v1(input)
        } else if begins_like(input, V2_BEGINS) {
            v2(input)
        } else {
            Err(BadHeader::Missing)
        }
    }
}

/// Whether `input` is, as far as it goes, `beginning` and anything behind it.
fn begins_like(input: &[u8], beginning: &[u8]) -> bool {
    let seen = input.len().min(beginning.len());
    input[..seen] == beginning[..seen]
}

/// `PROXY TCP4 192.0.2.1 192.0.2.2 56324 443` or `PROXY UNKNOWN` and anything, then CR LF.
fn v1(input: &[u8]) -> Result<Option<ProxyHeader>, BadHeader> {
    let window = &input[..input.len().min(MAX_V1)];
    let end = match memchr2(b'\r', b'\n', window) {
        Some(at) if window[at] == b'\r' && at + 1 < MAX_V1 => at,
        Some(at) if window[at] == b'\n' => return Err(BadHeader::Malformed),
        None if window.len() < MAX_V1 => return Ok(None),
        _ => return Err(BadHeader::TooLong),
    };
    match window.get(end + 1) {
        None => return Ok(None),
        Some(b'\n') => {}
        Some(_) => return Err(BadHeader::Malformed),
    }
    let source = v1_source(&window[V1_BEGINS.len()..end]).ok_or(BadHeader::Malformed)?;
    Ok(Some(ProxyHeader { length: end + 2, source }))
}

/// What the words behind `PROXY` say; `None` where they say nothing that can be understood.
fn v1_source(words: &[u8]) -> Option<Option<SocketAddr>> {
    let mut words = std::str::from_utf8(words).ok()?.split(' ');
    let family = words.next()?;
    if family == "UNKNOWN" {
        return Some(None);
    }
    let is_four = match family {
        "TCP4" => true,
        "TCP6" => false,
        _ => return None,
    };
    let ip = |text: &str| text.parse::<IpAddr>().ok().filter(|ip| ip.is_ipv4() == is_four);
    let (source, _destination) = (ip(words.next()?)?, ip(words.next()?)?);
    let (source_port, _destination_port) = (port(words.next()?)?, port(words.next()?)?);
    words.next().is_none().then_some(Some(SocketAddr::new(source, source_port)))
}

/// Digits only, and no zero before others: `u16` would take a sign as well.
fn port(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| plain)
}

fn v2(input: &[u8]) -> Result<Option<ProxyHeader>, BadHeader> {
    const LOCAL: u8 = 0x20;
    const PROXY: u8 = 0x21;
    const UNSPECIFIED: u8 = 0x00;
    const TCP4: u8 = 0x11;
    const TCP6: u8 = 0x21;
    /// A client of the proxy's own machine, by a socket that has no address.
    const UNIX_STREAM: u8 = 0x31;

    // Each byte is judged as soon as it is there: no wrong one is waited behind.
    let Some(&command) = input.get(12) else { return Ok(None) };
    if command != LOCAL && command != PROXY {
        return Err(BadHeader::Malformed);
    }
    let Some(&family) = input.get(13) else { return Ok(None) };
    // Source and destination: two addresses, two ports. A proxy that speaks for itself says none.
    let addresses = match family {
        _ if command == LOCAL => 0,
        UNSPECIFIED => 0,
        TCP4 => 2 * (4 + 2),
        TCP6 => 2 * (16 + 2),
        UNIX_STREAM => 2 * 108,
        _ => return Err(BadHeader::Malformed),
    };
    let Some(fixed) = input.get(..V2_FIXED) else { return Ok(None) };
    let rest = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if rest > MAX_V2_REST {
        return Err(BadHeader::TooLong);
    }
    if rest < addresses {
        return Err(BadHeader::Malformed);
    }
    let length = V2_FIXED + rest;
    let Some(header) = input.get(..length) else { return Ok(None) };
    let block = &header[V2_FIXED..];
    // Both are inside `addresses`.
    let port = |at: usize| u16::from_be_bytes([block[at], block[at + 1]]);
    let source = match (command, family) {
        (PROXY, TCP4) => block.first_chunk::<4>().map(|ip| SocketAddr::from((*ip, port(8)))),
        (PROXY, TCP6) => block.first_chunk::<16>().map(|ip| SocketAddr::from((*ip, port(32)))),
        _ => None,
    };
    Ok(Some(ProxyHeader { length, source }))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    fn whole(input: &[u8]) -> (usize, Option<String>) {
        let header = ProxyHeader::parse(input).unwrap().unwrap();
        (header.length, header.source.map(|source| source.to_string()))
    }

    fn v2_header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [V2_BEGINS, &[command, family], &length, rest].concat()
    }

    const FOUR: &[u8] = &[192, 0, 2, 7, 127, 0, 0, 1, 0xdc, 0x04, 0x17, 0x70];

    #[test]
    fn a_line_of_text_tells_the_source() {
        let header = b"PROXY TCP4 192.0.2.7 127.0.0.1 56324 8000\r\n{\"msgid\":202}";
        assert_eq!(whole(header), (43, Some("192.0.2.7:56324".into())));
        assert_eq!(whole(b"PROXY TCP6 2001:db8::7 ::1 0 65535\r\n").1, Some("[2001:db8::7]:0".into()));
        assert_eq!(whole(b"PROXY UNKNOWN\r\n"), (15, None));
        assert_eq!(whole(b"PROXY UNKNOWN ffff::1 of what kind ever\r\n{").1, None);
    }

    #[test]
    fn a_binary_header_tells_the_source_and_its_extensions_are_skipped() {
        let plain = v2_header(0x21, 0x11, FOUR);
        assert_eq!(whole(&plain), (28, Some("192.0.2.7:56324".into())));
        let extended = v2_header(0x21, 0x11, &[FOUR, &[4, 0, 3, 1, 2, 3]].concat());
        assert_eq!(whole(&[&extended[..], b"{}"].concat()), (34, Some("192.0.2.7:56324".into())));
        let six = [&Ipv6Addr::LOCALHOST.octets()[..], &[0; 16], &[0x17, 0x70, 0, 0]].concat();
        assert_eq!(whole(&v2_header(0x21, 0x21, &six)), (52, Some("[::1]:6000".into())));
    }

    #[test]
    fn a_proxy_may_speak_for_itself_or_not_know() {
        assert_eq!(whole(&v2_header(0x20, 0x00, b"")), (16, None));
        assert_eq!(whole(&v2_header(0x20, 0x11, FOUR)), (28, None));
        assert_eq!(whole(&v2_header(0x20, 0xff, b"xyz")), (19, None));
        assert_eq!(whole(&v2_header(0x21, 0x00, b"xyz")), (19, None));
        assert_eq!(whole(&v2_header(0x21, 0x31, &[0; 216])), (232, None));
    }

    #[test]
    fn what_is_no_header_is_known_by_its_first_wrong_byte() {
        for missing in [&b"{\"msgid\":202}"[..], b"G", b"PROXX", b"PROXY\t", b"\0", b"\r\n\r\n\0\r\nQUIT\r"] {
            assert_eq!(ProxyHeader::parse(missing), Err(BadHeader::Missing), "{missing:?}");
        }
        for begun in [&b""[..], b"PROXY", b"PROXY ", b"PROXY TCP4 1.2.3.4", b"\r", b"\r\n\r\n\0\r\nQUIT\n\x21"] {
            assert_eq!(ProxyHeader::parse(begun), Ok(None), "{begun:?}");
        }
    }

    #[test]
    fn a_malformed_line_is_refused() {
        for words in [
            "",
            "TCP4",
            "TCP5 1.2.3.4 1.2.3.4 1 2",
            "tcp4 1.2.3.4 1.2.3.4 1 2",
            "UNKNOWNS",
            "TCP4 1.2.3.4 1.2.3.4 1",
            "TCP4 1.2.3.4 1.2.3.4 1 2 3",
            "TCP4 1.2.3.4 1.2.3.4 1 2 ",
            "TCP4  1.2.3.4 1.2.3.4 1 2",
            "TCP4 1.2.3 1.2.3.4 1 2",
            "TCP4 ::1 ::1 1 2",
            "TCP4 1.2.3.4 ::1 1 2",
            "TCP6 1.2.3.4 1.2.3.4 1 2",
            "TCP4 1.2.3.4 1.2.3.4 65536 2",
            "TCP4 1.2.3.4 1.2.3.4 +1 2",
            "TCP4 1.2.3.4 1.2.3.4 01 2",
            "TCP4 1.2.3.4 1.2.3.4 1 -2",
            "TCP4 1.2.3.4\n1.2.3.4 1 2",
            "TCP4 1.2.3.4\r1.2.3.4 1 2",
            "TCP4 1.2.3.4 1.2.3.\u{664} 1 2",
        ] {
            let line = format!("PROXY {words}\r\n");
            assert_eq!(ProxyHeader::parse(line.as_bytes()), Err(BadHeader::Malformed), "{line:?}");
        }
        assert_eq!(ProxyHeader::parse(b"PROXY TCP4 1.2.3.4\n"), Err(BadHeader::Malformed));
    }

    #[test]
    fn a_malformed_binary_header_is_refused_before_its_rest_has_come() {
        let command = [V2_BEGINS, &[0x22]].concat();
        let version = [V2_BEGINS, &[0x11]].concat();
        let udp = [V2_BEGINS, &[0x21, 0x12]].concat();
        let short = [V2_BEGINS, &[0x21, 0x11, 0, 11]].concat();
        let short_six = [V2_BEGINS, &[0x21, 0x21, 0, 35]].concat();
        for header in [command, version, udp, short, short_six] {
            assert_eq!(ProxyHeader::parse(&header), Err(BadHeader::Malformed), "{header:?}");
        }
    }

    #[test]
    fn a_header_is_taken_up_to_its_limit_and_refused_past_it() {
        let line = |length: usize| format!("PROXY UNKNOWN {}\r\n", "x".repeat(length - 16)).into_bytes();
        assert_eq!(whole(&line(MAX_V1)).0, MAX_V1);
        assert_eq!(ProxyHeader::parse(&line(MAX_V1)[..MAX_V1 - 1]), Ok(None));
        assert_eq!(ProxyHeader::parse(&line(MAX_V1 + 1)), Err(BadHeader::TooLong));
        assert_eq!(ProxyHeader::parse(&line(MAX_V1 + 2)[..MAX_V1]), Err(BadHeader::TooLong));
        assert_eq!(whole(&v2_header(0x20, 0, &[0; MAX_V2_REST])).0, V2_FIXED + MAX_V2_REST);
        let long = v2_header(0x20, 0, &[0; MAX_V2_REST + 1]);
        assert_eq!(ProxyHeader::parse(&long[..V2_FIXED]), Err(BadHeader::TooLong));
    }
}
