//! Addresses that bear a password: what may be shown of them.
//!
//! An address is read before anything of it is printed, and of one that cannot be read nothing is
//! printed but what stands before its first colon. Of one that can, the scheme, the host, the port and
//! the path are shown: the password is not, nor the user, since a password may stand in its place, nor
//! any parameter.

use std::fmt;

use url::Url;

/// An address that may bear a password. `Display` and `Debug` are without it.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl {
    text: String,
    shown: String,
}

/// Why a text is no [`SecretUrl`]. None of these says what stands in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    #[error("it must begin with a scheme and //")]
    Form,
    #[error("an '@' follows a '/', '?' or '#': in a user or a password, write %2F, %3F or %23 for these")]
    Ambiguous,
    #[error("it has no host")]
    NoHost,
    #[error("it cannot be parsed: {0}")]
    Unreadable(url::ParseError),
}

impl SecretUrl {
    /// Reads an address, which then begins with `scheme`, whatever it began with.
    ///
    /// # Errors
    /// It is no URL with a host, or it may mean another host than it was meant to.
    pub fn parse(text: &str, scheme: &str) -> Result<SecretUrl, UrlError> {
        let (_, rest) = text.trim().split_once("://").ok_or(UrlError::Form)?;
        // What is taken for the host ends here. Were an '@' behind it, a part of the password would be
        // taken for the host or its port, and shown.
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        if rest[end..].contains('@') {
            return Err(UrlError::Ambiguous);
        }
        let text = format!("{scheme}://{rest}");
        let url = Url::parse(&text).map_err(UrlError::Unreadable)?;
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or(UrlError::NoHost)?;
        let port = url.port().map_or(String::new(), |port| format!(":{port}"));
        let shown = format!("{scheme}://{host}{port}{}", url.path());
        Ok(SecretUrl { text, shown })
    }

    /// The whole address, with its password: for connecting, never for a text.
    pub fn reveal(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// What stands before the first colon of an address, if it looks like a scheme.
pub fn scheme(address: &str) -> Option<&str> {
    let (scheme, _) = address.trim().split_once(':')?;
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    is_scheme.then_some(scheme)
}

/// An address that could not be read, as it may be printed.
pub fn redacted(address: &str) -> String {
    scheme(address).map_or("…".to_owned(), |scheme| format!("{scheme}:…"))
}

/// Schemes of addresses that bear passwords.
const SCHEMES: [&str; 8] = ["mysql", "mariadb", "redis", "rediss", "valkey", "valkeys", "sqlite", "unix"];

/// Whether a word of a command line, in whatever place it stands, may be an address with a password.
pub fn may_hold_secret(word: &str) -> bool {
    let has_scheme = |scheme: &str| SCHEMES.iter().any(|known| known.eq_ignore_ascii_case(scheme));
    word.contains('@') || word.contains("//") || scheme(word).is_some_and(has_scheme)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_of_an_address_is_where_it_leads() {
        for (text, shown) in [
            ("mysql://chat:s3cret@127.0.0.1:3306/chat", "mysql://127.0.0.1:3306/chat"),
            ("MariaDB://chat:s3cret@db.example/chat", "mysql://db.example/chat"),
            ("mysql://chat:p%40s3cret@[::1]:3306/chat?user=s3cret", "mysql://[::1]:3306/chat"),
            ("mysql://chat:s3@cret@h/chat", "mysql://h/chat"),
            ("mysql://chat:s3:cret@h/chat", "mysql://h/chat"),
            ("mysql://s3cret@h/chat#s3cret", "mysql://h/chat"),
            ("  mysql://h/chat\n", "mysql://h/chat"),
        ] {
            let url = SecretUrl::parse(text, "mysql").unwrap();
            assert_eq!((url.to_string(), format!("{url:?}")), (shown.to_owned(), shown.to_owned()), "{text}");
            assert!(Url::parse(url.reveal()).is_ok_and(|url| url.scheme() == "mysql"), "{text}");
        }
    }

    #[test]
    fn an_address_that_may_mean_another_host_is_refused() {
        for (text, error) in [
            ("mysql:/x:s3cret@h/chat", UrlError::Form),
            ("mysql//x:s3cret@h/chat", UrlError::Form),
            ("chat:s3cret@h/chat", UrlError::Form),
            ("mysql://chat:s3/cret@h/chat", UrlError::Ambiguous),
            ("mysql://chat:123#cret@h/chat", UrlError::Ambiguous),
            ("mysql://chat:123?cret@h/chat", UrlError::Ambiguous),
            ("mysql:///chat", UrlError::NoHost),
        ] {
            assert_eq!(SecretUrl::parse(text, "mysql"), Err(error), "{text}");
        }
        let error = SecretUrl::parse("mysql://chat:s3crethost/chat", "mysql").unwrap_err();
        assert!(!error.to_string().contains("s3cret"), "{error}");
    }

    #[test]
    fn of_what_cannot_be_read_the_scheme_is_shown_and_nothing_else() {
        for (text, shown) in [
            ("papyrus:scroll", "papyrus:…"),
            ("mysql:/x:s3cret@h", "mysql:…"),
            ("s3cret", "…"),
            ("'mysql://x:s3cret@h'", "…"),
            (":s3cret@h:6379", "…"),
            ("x@s3cret:6379", "…"),
            ("", "…"),
        ] {
            assert_eq!(redacted(text), shown);
        }
    }

    #[test]
    fn words_that_may_be_addresses_are_told_from_others() {
        for word in ["mysql:/x:pw", "Redis:pw", "mysqI://x:pw@h", "x:pw@h", "mysql//x:pw", "--store=mysql://x:pw@h"] {
            assert!(may_hold_secret(word), "{word}");
        }
        for word in ["70000", "localhost", "127.0.0.1:6000", "10.0.0.0/33", "5 parsecs", "--colour"] {
            assert!(!may_hold_secret(word), "{word}");
        }
    }
}
