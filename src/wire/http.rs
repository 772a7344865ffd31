//! What browsers ask for by HTTP: the page, and a WebSocket.

use std::fmt::Write as _;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use httparse::{Header, Status};
use memchr::memmem;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY as SHA1, SHA256, digest};

/// The largest head of a request, in bytes.
pub const MAX_HEAD: usize = 8 * 1024;
/// More headers than browsers send.
const MAX_HEADERS: usize = 100;
/// How every request begins that is answered.
const METHOD: &[u8] = b"GET ";
/// What RFC 6455 has hashed with a client's key.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// The bytes of a client's key.
const KEY: usize = 16;

/// The head of a request, which is whole.
#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    /// How much of the input it takes.
    pub length: usize,
    pub asked: Asked,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    Page,
    WebSocket {
        /// The server's proof that it has understood.
        accept: String,
    },
}

/// Why a request is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    NoRequest,
    NoHandshake,
    Origin,
    NotFound,
    Timeout,
    NoUpgrade,
    TooLarge,
    Version,
}

impl Refused {
    fn status(self) -> &'static str {
        match self {
            Refused::NoRequest | Refused::NoHandshake => "400 Bad Request",
            Refused::Origin => "403 Forbidden",
            Refused::NotFound => "404 Not Found",
            Refused::Timeout => "408 Request Timeout",
            Refused::NoUpgrade => "426 Upgrade Required",
            Refused::TooLarge => "431 Request Header Fields Too Large",
            Refused::Version => "505 HTTP Version Not Supported",
        }
    }

    /// One line.
    fn text(self) -> &'static str {
        match self {
            Refused::NoRequest => "this is no request\n",
            Refused::NoHandshake => "a WebSocket needs a Host and a Sec-WebSocket-Key\n",
            Refused::Origin => "pages of this host may not open a WebSocket here\n",
            Refused::NotFound => "there is / and /ws\n",
            Refused::Timeout => "the request has taken too long\n",
            Refused::NoUpgrade => "WebSocket version 13 is spoken here\n",
            Refused::TooLarge => "at most 8 KiB, and 100 headers\n",
            Refused::Version => "HTTP/1.1 is spoken here\n",
        }
    }
}

impl Head {
    /// Reads the head at the front of `input`; `None`: more bytes are needed. There is no state to keep: the caller
    /// passes the same bytes again, followed by those that have come since. `origins`: the other hosts whose pages may
    /// open a WebSocket, as browsers name them, or `*` for all.
    ///
    /// # Errors
    /// It is refused, whatever follows. The connection must be closed.
    pub fn read(input: &[u8], origins: &[String]) -> Result<Option<Head>, Refused> {
        let window = &input[..input.len().min(MAX_HEAD)];
        let begun = window.len().min(METHOD.len());
        if window[..begun] != METHOD[..begun] {
            return Err(Refused::NoRequest);
        }
        let Some(end) = end_of_head(window) else {
            return if window.len() < MAX_HEAD { Ok(None) } else { Err(Refused::TooLarge) };
        };
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        let length = match request.parse(&window[..end]) {
            Ok(Status::Complete(length)) => length,
            Err(httparse::Error::TooManyHeaders) => return Err(Refused::TooLarge),
            Err(httparse::Error::Version) => return Err(Refused::Version),
            Ok(Status::Partial) | Err(_) => return Err(Refused::NoRequest),
        };
        let asked = match request.path.and_then(|target| target.split('?').next()) {
            Some("/" | "/index.html") => Asked::Page,
            Some("/ws") => Asked::WebSocket { accept: handshake(request.version, request.headers, origins)? },
            _ => return Err(Refused::NotFound),
        };
        Ok(Some(Head { length, asked }))
    }
}

/// Behind the first blank line.
fn end_of_head(input: &[u8]) -> Option<usize> {
    memchr::memchr_iter(b'\n', input).find_map(|at| match input[at + 1..] {
        [b'\n', ..] => Some(at + 2),
        [b'\r', b'\n', ..] => Some(at + 3),
        _ => None,
    })
}

/// What proves that the server has understood the handshake of a WebSocket.
fn handshake(version: Option<u8>, headers: &[Header], origins: &[String]) -> Result<String, Refused> {
    let of = |name: &'static str| {
        let named = move |header: &&Header| header.name.eq_ignore_ascii_case(name);
        headers.iter().filter(named).map(|header| header.value.trim_ascii())
    };
    let only = |name| {
        let mut values = of(name);
        values.next().filter(|_| values.next().is_none())
    };
    let has_word = |name, word: &str| {
        of(name)
            .flat_map(|value| value.split(|byte| *byte == b','))
            .any(|found| found.trim_ascii().eq_ignore_ascii_case(word.as_bytes()))
    };
    let is_upgrade = has_word("Upgrade", "websocket") && has_word("Connection", "upgrade");
    if !is_upgrade || only("Sec-WebSocket-Version") != Some(&b"13"[..]) {
        return Err(Refused::NoUpgrade);
    }
    let host = only("Host").ok_or(Refused::NoHandshake)?;
    if of("Origin").any(|origin| !is_allowed(origin, host, origins)) {
        return Err(Refused::Origin);
    }
    let key = only("Sec-WebSocket-Key").filter(|_| version == Some(1));
    let is_key = |key: &&[u8]| BASE64.decode(key).is_ok_and(|bytes| bytes.len() == KEY);
    let key = key.filter(is_key).ok_or(Refused::NoHandshake)?;
    Ok(BASE64.encode(digest(&SHA1, &[key, GUID.as_bytes()].concat())))
}

/// Whether pages of this origin may open a WebSocket at this host: its own, and those that an operator has named. A
/// client that is no browser has none, or says what it likes.
fn is_allowed(origin: &[u8], host: &[u8], origins: &[String]) -> bool {
    let is_named = |named: &String| named == "*" || named.as_bytes().eq_ignore_ascii_case(origin);
    let scheme = memmem::find(origin, b"://");
    scheme.is_some_and(|at| origin[at + 3..].eq_ignore_ascii_case(host)) || origins.iter().any(is_named)
}

/// The reply that makes a WebSocket of the connection.
pub fn write_switch(out: &mut Vec<u8>, accept: &str) {
    const HEAD: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n";
    out.extend_from_slice(format!("{HEAD}Sec-WebSocket-Accept: {accept}\r\n\r\n").as_bytes());
}

/// The reply to a request that is not served; the connection is closed behind it.
pub fn write_refusal(out: &mut Vec<u8>, refused: Refused) {
    let more = match refused {
        Refused::NoUpgrade => "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
        _ => "",
    };
    let head = head(refused.status(), "text/plain", refused.text().len());
    out.extend_from_slice(format!("{head}{more}\r\n{}", refused.text()).as_bytes());
}

/// The reply with the page; the connection is closed behind it. A browser runs no script and takes no style but those
/// that stand in it, and lets it connect to nothing but this server.
pub fn page(html: &str) -> Vec<u8> {
    let mut head = head("200 OK", "text/html; charset=utf-8", html.len());
    let _ = write!(
        head,
        "Content-Security-Policy: default-src 'none'; script-src {}; style-src {}; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n\
         Referrer-Policy: no-referrer\r\n\r\n{html}",
        hashes(html, "script"),
        hashes(html, "style"),
    );
    head.into_bytes()
}

fn head(status: &str, kind: &str, length: usize) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nCache-Control: no-cache\r\n\
         X-Content-Type-Options: nosniff\r\nConnection: close\r\n"
    )
}

/// The elements of this name, as a policy lists them: by the hashes of what stands in them.
fn hashes(html: &str, name: &str) -> String {
    let (begin, end) = (format!("<{name}"), format!("</{name}>"));
    let texts = html.split(&begin).skip(1).filter_map(|rest| rest.split_once('>')?.1.split(&end).next());
    let hash = |text: &str| format!("'sha256-{}'", BASE64.encode(digest(&SHA256, text.as_bytes())));
    let hashes: Vec<String> = texts.map(hash).collect();
    if hashes.is_empty() { "'none'".to_owned() } else { hashes.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY_LINE: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    const UPGRADE: &str = "Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n";

    /// What is said of it, which must be the same however it is cut.
    #[track_caller]
    fn read_with(input: &str, origins: &[&str]) -> Result<Option<Head>, Refused> {
        let origins: Vec<String> = origins.iter().map(|origin| (*origin).to_owned()).collect();
        let whole = Head::read(input.as_bytes(), &origins);
        let parts = (0..=input.len()).map(|cut| Head::read(&input.as_bytes()[..cut], &origins));
        let first = parts.into_iter().find(|said| *said != Ok(None));
        assert_eq!(first.unwrap_or(Ok(None)), whole, "{input:?}");
        whole
    }

    #[track_caller]
    fn read(input: &str) -> Result<Option<Head>, Refused> {
        read_with(input, &[])
    }

    fn page_behind(length: usize) -> Result<Option<Head>, Refused> {
        Ok(Some(Head { length, asked: Asked::Page }))
    }

    #[test]
    fn the_page_is_at_the_root() {
        for target in ["/", "/index.html", "/?lang=zh", "/?a=/ws"] {
            let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
            assert_eq!(read(&(request.clone() + "{more}")), page_behind(request.len()), "{target}");
        }
        assert_eq!(read("GET / HTTP/1.0\n\n"), page_behind(16));
        for target in ["/favicon.ico", "/ws/", "//", "/index.htm", "*", "http://x/", "/%69ndex.html"] {
            assert_eq!(read(&format!("GET {target} HTTP/1.1\r\n\r\n")), Err(Refused::NotFound), "{target}");
        }
    }

    #[test]
    fn what_is_no_request_is_refused_as_soon_as_that_is_known() {
        for (request, refused) in [
            ("GARBAGE", Refused::NoRequest),
            ("Get / HTTP/1.1\r\n\r\n", Refused::NoRequest),
            ("GET  / HTTP/1.1\r\n\r\n", Refused::NoRequest),
            ("GET /\r\n\r\n", Refused::NoRequest),
            ("GET / HTTP/1.1\r\nno header\r\n\r\n", Refused::NoRequest),
            ("GET / HTTP/1.1\r\nX: \0\r\n\r\n", Refused::NoRequest),
            ("GET / HTTP/2.0\r\n\r\n", Refused::Version),
        ] {
            assert_eq!(read(request), Err(refused), "{request:?}");
        }
        for begun in ["", "G", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nHost: x\r\n\r"] {
            assert_eq!(read(begun), Ok(None), "{begun:?}");
        }
        let long = "x".repeat(MAX_HEAD);
        let fits = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", &long[..MAX_HEAD - 23]);
        assert_eq!((fits.len(), read(&fits)), (MAX_HEAD, page_behind(MAX_HEAD)));
        assert_eq!(read(&format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", &long[..MAX_HEAD - 22])), Err(Refused::TooLarge));
        assert_eq!(read(&format!("GET /{long}")), Err(Refused::TooLarge));
        assert_eq!(read(&format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(101))), Err(Refused::TooLarge));
    }

    #[test]
    fn a_handshake_is_proved_to_be_understood() {
        // The example of RFC 6455, section 1.3.
        let accept = || "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".to_owned();
        let request = format!("GET /ws HTTP/1.1\r\nHost: x\r\n{UPGRADE}{KEY_LINE}\r\n");
        let head = Head { length: request.len(), asked: Asked::WebSocket { accept: accept() } };
        assert_eq!(read(&request), Ok(Some(head)));
        let mut out = Vec::new();
        write_switch(&mut out, &accept());
        assert!(out.ends_with(b"\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"));
    }

    #[test]
    fn a_handshake_that_lacks_something_is_refused() {
        let request = |lines: &[&str]| format!("GET /ws HTTP/1.1\r\n{}\r\n", lines.concat());
        let host = "hOST: x\r\n";
        assert!(read(&request(&[host, UPGRADE, KEY_LINE])).is_ok());
        for (lines, refused) in [
            (&[host][..], Refused::NoUpgrade),
            (&[host, KEY_LINE, "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"], Refused::NoUpgrade),
            (&[host, KEY_LINE, "Connection: upgrade\r\nSec-WebSocket-Version: 13\r\n"], Refused::NoUpgrade),
            (&[host, KEY_LINE, "Connection: upgrade\r\nUpgrade: websocket\r\n"], Refused::NoUpgrade),
            (&[host, KEY_LINE, UPGRADE, "Sec-WebSocket-Version: 8\r\n"], Refused::NoUpgrade),
            (&[UPGRADE, KEY_LINE], Refused::NoHandshake),
            (&[host, host, UPGRADE, KEY_LINE], Refused::NoHandshake),
            (&[host, UPGRADE], Refused::NoHandshake),
            (&[host, UPGRADE, KEY_LINE, KEY_LINE], Refused::NoHandshake),
            (&[host, UPGRADE, "Sec-WebSocket-Key: dGhlIHNhbXBsZQ==\r\n"], Refused::NoHandshake),
            (&[host, UPGRADE, "Sec-WebSocket-Key: not base64, not at all!!\r\n"], Refused::NoHandshake),
        ] {
            assert_eq!(read(&request(lines)), Err(refused), "{lines:?}");
        }
        let old = request(&[host, UPGRADE, KEY_LINE]).replace("HTTP/1.1", "HTTP/1.0");
        assert_eq!(read(&old), Err(Refused::NoHandshake));
        let mut out = Vec::new();
        write_refusal(&mut out, Refused::NoUpgrade);
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("HTTP/1.1 426 ") && text.contains("\r\nSec-WebSocket-Version: 13\r\n"), "{text}");
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())), "{text}");
    }

    #[test]
    fn pages_of_other_hosts_need_to_be_allowed() {
        let is_allowed = |origin: &str, origins: &[&str]| {
            let lines = format!("Host: chat.example:8443\r\nOrigin: {origin}\r\n{UPGRADE}{KEY_LINE}");
            match read_with(&format!("GET /ws HTTP/1.1\r\n{lines}\r\n"), origins) {
                Ok(Some(_)) => true,
                Err(Refused::Origin) => false,
                other => panic!("{other:?}"),
            }
        };
        assert!(is_allowed("https://chat.example:8443", &[]) && is_allowed("http://CHAT.example:8443", &[]));
        let foreign =
            ["https://chat.example", "https://chat.example:8444", "https://x.chat.example:8443", "null", "", "://"];
        for origin in foreign {
            assert!(!is_allowed(origin, &[]), "{origin}");
            assert!(is_allowed(origin, &["*"]), "{origin}");
        }
        let named = ["https://a.example", "http://b.example:81"];
        assert!(is_allowed("https://A.example", &named) && is_allowed("http://b.example:81", &named));
        assert!(!is_allowed("http://a.example", &named) && !is_allowed("http://b.example", &named));
    }

    #[test]
    fn the_page_says_what_may_run_in_it() {
        let page = String::from_utf8(page("<style>b</style>é<script type=x>a</script><script>\n</script>")).unwrap();
        let (head, body) = page.split_once("\r\n\r\n").unwrap();
        assert_eq!(body.len(), 61);
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("\r\nContent-Length: 61\r\n"), "{head}");
        // SHA-256 of `a`, of a line feed, and of `b`.
        let script = "script-src 'sha256-ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs=' \
                      'sha256-AbpHGcgLb+kRsJGnwFEktk7uzpZOCcBY74+YBdrKVGs=';";
        assert!(head.contains(script), "{head}");
        assert!(head.contains("style-src 'sha256-PiPoFgA5WUoziU9lZOGxNIu9egCI1CxKy3PurtWcAJ0=';"), "{head}");
        assert!(head.contains("default-src 'none';") && head.contains("connect-src 'self';"), "{head}");
        assert!(super::page("no script").windows(18).any(|window| window == b"script-src 'none';"));
    }
}
