//! Thread `monitor`: parses an HTTP request.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// The largest request, up to the end of its head, in bytes.
pub const MAX_REQUEST: usize = 8 * 1024;
/// More headers than clients send.
const MAX_HEADERS: usize = 100;

/// A GET or a HEAD.
#[derive(Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// The reply has no body.
    pub is_head: bool,
    /// Decoded, and without the query; `/` if the target is only a host.
    pub path: Cow<'a, str>,
}

/// Why a request is not served.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    pub status: &'static str,
    /// One line.
    pub text: &'static str,
    pub is_head: bool,
}

impl<'a> Request<'a> {
    /// Reads the request at the front of `input`; `None`: more bytes are needed. There is no state to keep: the
    /// caller passes the same bytes again, followed by those that have come since.
    ///
    /// The Host is ignored, and may be missing: there is only one host here.
    pub fn read(input: &'a [u8]) -> Result<Option<Request<'a>>, Refused> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        let window = &input[..input.len().min(MAX_REQUEST)];
        let parsed = request.parse(window);
        let is_head = request.method == Some("HEAD");
        let refuse = |status, text| Err(Refused { status, text, is_head });
        match parsed {
            Ok(httparse::Status::Complete(_)) => {}
            // The bytes of the version that have not come yet may make it another version.
            Ok(httparse::Status::Partial) | Err(httparse::Error::Version) if !is_at_limit(input, &parsed) => {
                return Ok(None);
            }
            Ok(httparse::Status::Partial) if request.path.is_none() => {
                return refuse("414 URI Too Long", "at most 8 KiB\n");
            }
            Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
                return refuse("431 Request Header Fields Too Large", "at most 8 KiB, and 100 headers\n");
            }
            Err(httparse::Error::Version) if is_version(version_of(window)) => {
                return refuse("505 HTTP Version Not Supported", "HTTP/1.1 is spoken here\n");
            }
            Err(_) => return refuse("400 Bad Request", "this is no request\n"),
        }
        if !is_head && request.method != Some("GET") {
            return refuse("405 Method Not Allowed", "only GET and HEAD\n");
        }
        match request.path.and_then(path_of) {
            Some(path) => Ok(Some(Request { is_head, path })),
            None => refuse("400 Bad Request", "this is no target\n"),
        }
    }
}

/// Whether further bytes cannot change the result for `input`.
fn is_at_limit(input: &[u8], parsed: &httparse::Result<usize>) -> bool {
    input.len() > MAX_REQUEST || (parsed.is_err() && version_of(input).ends_with(b"\n"))
}

/// The last word of the request line, as far as it has come, with the end of the line.
fn version_of(input: &[u8]) -> &[u8] {
    let input = input.trim_ascii_start();
    let end = memchr::memchr(b'\n', input).map_or(input.len(), |at| at + 1);
    let from = memchr::memrchr(b' ', &input[..end]).map_or(0, |at| at + 1);
    &input[from..end]
}

/// `HTTP/` and two digits, of whatever version.
fn is_version(word: &[u8]) -> bool {
    matches!(word.trim_ascii_end(), [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9'])
}

/// The path of a target: `/metrics?x=1`, or as a proxy receives it, `http://host:9100/metrics?x=1`.
fn path_of(target: &str) -> Option<Cow<'_, str>> {
    let rest = if target.starts_with('/') {
        target
    } else {
        let (scheme, rest) = target.split_once("://")?;
        let is_http = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
        let host = rest.find(['/', '?']).unwrap_or(rest.len());
        if !is_http || host == 0 {
            return None;
        }
        &rest[host..]
    };
    match rest.split('?').next() {
        None | Some("") => Some("/".into()),
        Some(path) => percent_decode_str(path).decode_utf8().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of it, which must be the same however it is cut.
    #[track_caller]
    fn read(input: &str) -> Result<Option<(bool, String)>, &'static str> {
        let said = |input: &[u8]| match Request::read(input) {
            Ok(request) => Ok(request.map(|request| (request.is_head, request.path.into_owned()))),
            Err(refused) => Err(&refused.status[..3]),
        };
        let whole = said(input.as_bytes());
        let first = (0..=input.len()).map(|cut| said(&input.as_bytes()[..cut])).find(|said| *said != Ok(None));
        assert_eq!(first.unwrap_or(Ok(None)), whole, "{input:?}");
        whole
    }

    #[test]
    fn a_target_is_a_path_or_a_whole_address() {
        for (target, path) in [
            ("/metrics", "/metrics"),
            ("/metrics?x=1", "/metrics"),
            ("/metrics?x=http://y/z?", "/metrics"),
            ("/", "/"),
            ("/?x", "/"),
            ("/%6Detrics", "/metrics"),
            ("/%6detrics?%", "/metrics"),
            ("//metrics", "//metrics"),
            ("/%zz", "/%zz"),
            ("http://host/metrics", "/metrics"),
            ("HTTP://HOST:9100/metrics?x=1", "/metrics"),
            ("https://[::1]:9100/readyz", "/readyz"),
            ("http://host", "/"),
            ("http://host?x=1", "/"),
            ("http://host/", "/"),
        ] {
            let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
            assert_eq!(read(&request), Ok(Some((false, path.to_owned()))), "{target}");
        }
        for target in ["metrics", "*", "host:9100", "http:///metrics", "http:/metrics", "ftp://host/metrics", "/%ff"] {
            assert_eq!(read(&format!("GET {target} HTTP/1.1\r\n\r\n")), Err("400"), "{target}");
        }
    }

    #[test]
    fn what_http_allows_around_a_request_is_taken() {
        let healthz = Ok(Some((false, "/healthz".to_owned())));
        for request in [
            "\r\nGET /healthz HTTP/1.1\r\n\r\n",
            "\n\r\n\nGET /healthz HTTP/1.1\nhost:x\n\n",
            "GET /healthz HTTP/1.0\r\n\r\n",
            "GET /healthz HTTP/1.1\r\nhOST: \r\nX-Odd!#$%&'*+.^_`|~1:\t a \t\r\nEXPECT: 100-continue\r\n\r\n",
            "GET /healthz HTTP/1.1\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello",
            "GET /healthz HTTP/1.1\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n",
        ] {
            assert_eq!(read(request), healthz, "{request:?}");
        }
        assert_eq!(read("HEAD / HTTP/1.1\r\n\r\n"), Ok(Some((true, "/".to_owned()))));
        for begun in
            ["", "\r\n", "\r\n\r\n\n", "GET", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nHost: x\r\n", "GET / HTTP/2"]
        {
            assert_eq!(read(begun), Ok(None), "{begun:?}");
        }
    }

    #[test]
    fn a_refusal_says_what_is_wrong() {
        for (request, status) in [
            ("hello\r\n\r\n", "400"),
            ("GET  / HTTP/1.1\r\n\r\n", "400"),
            ("GET / HTTP/1.1 \r\n\r\n", "400"),
            ("GET / http/1.1\r\n\r\n", "400"),
            ("GET / HTTP/3\r\n\r\n", "400"),
            ("GET /\r\n\r\n", "400"),
            ("GET / HTTP/1.1\r\nX: a\r\n folded\r\n\r\n", "400"),
            ("GET / HTTP/1.1\r\nX : a\r\n\r\n", "400"),
            ("GET / HTTP/1.1\r\nno header\r\n\r\n", "400"),
            ("GET / HTTP/1.1\r\nX: \0\r\n\r\n", "400"),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505"),
            ("GET / HTTP/2.0\r\n\r\n", "505"),
            ("\r\nGET / HTTP/0.9\r\n\r\n", "505"),
            ("POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "405"),
            ("OPTIONS * HTTP/1.1\r\n\r\n", "405"),
            ("CONNECT host:1 HTTP/1.1\r\n\r\n", "405"),
            ("get / HTTP/1.1\r\n\r\n", "405"),
        ] {
            assert_eq!(read(request), Err(status), "{request:?}");
        }
        let long = "x".repeat(MAX_REQUEST);
        assert_eq!(read(&format!("GET /{long}")), Err("414"));
        assert_eq!(read(&format!("GET / HTTP/1.1\r\nX: {long}")), Err("431"));
        assert_eq!(read(&format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(200))), Err("431"));
        let fits = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", &long[..MAX_REQUEST - 23]);
        assert_eq!((fits.len(), read(&fits)), (MAX_REQUEST, Ok(Some((false, "/".to_owned())))));
    }
}
