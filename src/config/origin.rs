//! Web origins (RFC 6454). They are parsed once at startup and compared as values: letter case, default ports and the
//! spelling of an IP address make no difference.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// Maximum length of a host name (RFC 1035), including an optional trailing dot.
const HOST_MAX_BYTES: usize = 254;

/// Schemes whose pages have no origin in browsers: they send `Origin: null`.
const WITHOUT_ORIGIN: &[&str] = &["about", "blob", "data", "file", "javascript"];

/// The host of an origin or of a `Host` header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A name, in lower case.
    Name(String),
    /// An IPv4 address.
    V4(Ipv4Addr),
    /// An IPv6 address.
    V6(Ipv6Addr),
}

impl Host {
    fn parse(text: &str) -> Option<Host> {
        if let Some(address) = text.strip_prefix('[') {
            return Some(Host::V6(address.strip_suffix(']')?.parse().ok()?));
        }
        let name = text.to_ascii_lowercase();
        let of_name =
            |label: &str| !label.is_empty() && label.bytes().all(|byte| is_of_name(&byte));
        let mut labels = name.strip_suffix('.').unwrap_or(&name).split('.');
        if name.len() > HOST_MAX_BYTES || !labels.clone().all(of_name) {
            return None;
        }
        // Browsers read a host that ends in a number as an IPv4 address, and write it with four numbers.
        let last = labels.next_back().unwrap_or_default();
        let is_hex = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let is_number = last.bytes().all(|byte| byte.is_ascii_digit())
            || last.strip_prefix("0x").is_some_and(is_hex);
        match is_number {
            true => Some(Host::V4(name.parse().ok()?)),
            false => Some(Host::Name(name)),
        }
    }
}

fn is_of_name(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

/// A host with an optional port, as in a `Host` header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// The host.
    pub host: Host,
    /// The port, if there is one.
    pub port: Option<u16>,
}

impl Authority {
    /// Parses `host` or `host:port`. Returns `None` for anything else.
    pub fn parse(text: &str) -> Option<Authority> {
        let (host, port) = split_port(text.trim());
        let port = match port {
            // RFC 3986, 3.2.3: the port after a colon may be empty.
            None | Some("") => None,
            Some(port) => Some(parse_port(port)?),
        };
        Some(Authority {
            host: Host::parse(host)?,
            port,
        })
    }
}

fn split_port(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        // The colons of an IPv6 address are inside brackets.
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    }
}

/// Parses a port from 1 to 65535.
pub fn parse_port(text: &str) -> Option<u16> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| is_number && *port > 0)
}

/// The origin of a page, as a browser sends it in `Origin`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    scheme: String,
    host: Host,
    /// The explicit port, or else the scheme's default.
    port: Option<u16>,
}

impl Origin {
    /// Parses the value of an `Origin` header. Returns `None` for `null` and for anything that is not an origin.
    pub fn parse(text: &str) -> Option<Origin> {
        match pattern(text) {
            Ok(AllowedOrigin::One(origin)) => Some(origin),
            _ => None,
        }
    }

    /// Returns the scheme, in lower case.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// Returns the host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Returns the explicit port, or else the scheme's default.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Returns the default port of the scheme.
    pub fn default_port(&self) -> Option<u16> {
        default_port(&self.scheme)
    }
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

/// An entry of `allowed_origins` or `frame_ancestors`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
enum AllowedOrigin {
    /// `*`
    Any,
    /// `https://app.example.com`
    One(Origin),
    /// `https://*.example.com`: subdomains at any depth, but not the host itself.
    Below(Origin),
}

impl AllowedOrigin {
    fn names(&self, origin: &Origin) -> bool {
        match self {
            AllowedOrigin::Any => false,
            AllowedOrigin::One(allowed) => allowed == origin,
            AllowedOrigin::Below(parent) => {
                let (Host::Name(parent_name), Host::Name(name)) = (&parent.host, &origin.host)
                else {
                    return false;
                };
                let label = name
                    .strip_suffix(parent_name.as_str())
                    .and_then(|rest| rest.strip_suffix('.'));
                origin.scheme == parent.scheme
                    && origin.port == parent.port
                    && label.is_some_and(|label| !label.is_empty())
            }
        }
    }
}

/// Why such an entry matches no page, and what would be accepted.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct OriginError(String);

impl TryFrom<String> for AllowedOrigin {
    type Error = OriginError;

    fn try_from(entry: String) -> Result<AllowedOrigin, OriginError> {
        pattern(entry.trim()).map_err(|problem| {
            let right = corrected(&entry)
                .filter(|right| pattern(right).is_ok())
                .unwrap_or_else(|| "https://app.example.com".into());
            OriginError(format!(
                "`{}` {problem}; write an origin, such as `{right}`",
                without_user(&entry)
            ))
        })
    }
}

impl From<AllowedOrigin> for String {
    fn from(allowed: AllowedOrigin) -> String {
        let (origin, wildcard) = match allowed {
            AllowedOrigin::Any => return "*".into(),
            AllowedOrigin::One(origin) => (origin, ""),
            AllowedOrigin::Below(origin) => (origin, "*."),
        };
        let host = match &origin.host {
            Host::Name(name) => name.clone(),
            Host::V4(address) => address.to_string(),
            Host::V6(address) => format!("[{address}]"),
        };
        let port = origin.port.filter(|_| origin.port != origin.default_port());
        let port = port.map_or(String::new(), |port| format!(":{port}"));
        format!("{}://{wildcard}{host}{port}", origin.scheme)
    }
}

/// Parses an entry. The error says what is wrong with it.
fn pattern(text: &str) -> Result<AllowedOrigin, &'static str> {
    if text == "*" {
        return Ok(AllowedOrigin::Any);
    }
    if text.eq_ignore_ascii_case("null") {
        return Err("is what browsers send for any sandboxed page, so it would allow every page");
    }
    let (scheme, rest) = text.split_once("://").ok_or("has no scheme")?;
    let scheme = scheme.to_ascii_lowercase();
    let of_scheme = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    if !scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        || !scheme.bytes().all(of_scheme)
    {
        return Err("has an invalid scheme");
    }
    if matches!(scheme.as_str(), "ws" | "wss") {
        return Err("is a WebSocket address; the origin of a page begins with http or https");
    }
    if WITHOUT_ORIGIN.contains(&scheme.as_str()) {
        return Err("has a scheme whose pages have no origin");
    }
    if rest.ends_with('/') && !rest[..rest.len() - 1].contains(['/', '?', '#']) {
        return Err("ends with a slash, which an origin does not have");
    }
    if rest.contains(['/', '?', '#']) {
        return Err("has a path or a query, which an origin does not have");
    }
    if rest.contains('@') {
        return Err("has a user name, which an origin does not have");
    }
    let (host, port) = split_port(rest);
    let port = match port {
        Some(port) => Some(parse_port(port).ok_or("has a port that is not from 1 to 65535")?),
        None => default_port(&scheme),
    };
    let origin = |host| Origin { scheme, host, port };
    let Some(parent) = host.strip_prefix("*.") else {
        if host.contains('*') {
            return Err("has a `*` that is not the whole first part of the host");
        }
        if !host.is_ascii() {
            return Err("has a non-ASCII host; browsers send it in ASCII, as `xn--…`");
        }
        let host = Host::parse(host).ok_or("has no valid host")?;
        return Ok(AllowedOrigin::One(origin(host)));
    };
    match Host::parse(parent) {
        Some(Host::Name(name))
            if name.trim_end_matches('.').contains('.') || name == "localhost" =>
        {
            Ok(AllowedOrigin::Below(origin(Host::Name(name))))
        }
        Some(Host::Name(_)) => Err("would allow every host of a top-level domain"),
        _ => Err("has no domain after `*.`"),
    }
}

/// Returns the origin that the entry probably means: with a scheme, and without everything that is not part of an
/// origin.
fn corrected(entry: &str) -> Option<String> {
    let entry = entry.trim().trim_start_matches('/');
    let (scheme, rest) = entry.split_once("://").unwrap_or(("https", entry));
    let scheme = match scheme.to_ascii_lowercase().as_str() {
        "ws" => "http".to_owned(),
        "wss" => "https".to_owned(),
        other => other.to_owned(),
    };
    let rest = rest.split(['/', '?', '#']).next()?;
    let rest = rest.rsplit('@').next()?.to_ascii_lowercase();
    let (host, port) = split_port(&rest);
    let port = port.and_then(parse_port);
    let port = port.map_or(String::new(), |port| format!(":{port}"));
    Some(format!("{scheme}://{host}{port}"))
}

/// Returns an entry that is safe to show, without the user name and password before the host.
fn without_user(entry: &str) -> String {
    match (entry.find("://"), entry.rfind('@')) {
        (Some(scheme), Some(user)) if scheme < user => {
            format!("{}…{}", &entry[..scheme + 3], &entry[user..])
        }
        _ => entry.to_owned(),
    }
}

/// The origins whose pages have a permission: to read answers and use a cookie, or to show pages in a frame.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AllowedOrigins(#[serde(deserialize_with = "super::one_or_many")] Vec<AllowedOrigin>);

impl AllowedOrigins {
    /// Whether only the server's own pages have the permission.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an entry other than `*` names this origin. The pages of such an origin can use a cookie, too.
    pub fn names(&self, origin: &Origin) -> bool {
        self.0.iter().any(|allowed| allowed.names(origin))
    }

    /// Returns the origins as sources of a Content Security Policy.
    pub fn in_policy(&self) -> String {
        let sources: Vec<String> = self.0.iter().cloned().map(String::from).collect();
        match sources.is_empty() {
            true => "'none'".to_owned(),
            false => sources.join(" "),
        }
    }

    /// Whether `*` is listed: every page has the permission. With `allowed_origins`, it does not extend to the cookie.
    pub fn has_any(&self) -> bool {
        self.0.contains(&AllowedOrigin::Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(entries: &[&str]) -> Result<AllowedOrigins, String> {
        serde_json::from_value(serde_json::json!(entries)).map_err(|error| error.to_string())
    }

    fn names(entry: &str, origin: &str) -> bool {
        let allowed = allowed(&[entry]).unwrap();
        Origin::parse(origin).is_some_and(|origin| allowed.names(&origin))
    }

    #[test]
    fn an_origin_is_the_same_in_every_spelling() {
        for (entry, origin) in [
            ("https://office.example", "https://office.example"),
            ("HTTPS://Office.Example", "https://office.example"),
            ("https://office.example", "https://OFFICE.example"),
            ("https://office.example:443", "https://office.example"),
            ("http://office.example:80", "http://office.example"),
            ("http://office.example", "http://office.example:80"),
            (" https://office.example ", "https://office.example"),
            ("http://[::1]:3000", "http://[0:0:0:0:0:0:0:1]:3000"),
            ("http://127.0.0.1:3000", "http://127.0.0.1:3000"),
            ("capacitor://localhost", "capacitor://localhost"),
        ] {
            assert!(names(entry, origin), "{entry} {origin}");
        }
        for (entry, origin) in [
            ("https://office.example", "http://office.example"),
            ("https://office.example", "https://office.example:8443"),
            ("http://office.example:443", "https://office.example"),
            (
                "https://office.example",
                "https://office.example.evil.example",
            ),
            ("https://office.example", "https://evil-office.example"),
            ("https://office.example", "https://office.example/"),
            ("https://office.example", "https://u@office.example"),
            ("https://office.example", "null"),
            ("https://office.example", ""),
            ("https://office.example", "https://*"),
            ("*", "https://office.example"),
        ] {
            assert!(!names(entry, origin), "{entry} {origin}");
        }
    }

    #[test]
    fn a_wildcard_names_what_is_below_a_domain_and_nothing_else() {
        for origin in [
            "https://a.example.com",
            "https://a.b.c.example.com",
            "https://A.Example.com:443",
        ] {
            assert!(names("https://*.example.com", origin), "{origin}");
        }
        for origin in [
            "https://example.com",
            "https://.example.com",
            "https://evilexample.com",
            "https://a.example.com.evil.example",
            "https://a.example.com:8443",
            "http://a.example.com",
            "https://*.example.com",
        ] {
            assert!(!names("https://*.example.com", origin), "{origin}");
        }
        assert!(names(
            "http://*.localhost:3000",
            "http://school.localhost:3000"
        ));
    }

    #[test]
    fn an_entry_that_can_never_match_is_rejected_with_the_right_form() {
        for (entry, right) in [
            ("https://office.example/", "`https://office.example`"),
            ("https://office.example/app?x#y", "`https://office.example`"),
            ("office.example", "`https://office.example`"),
            ("//office.example", "`https://office.example`"),
            ("office.example:8443", "`https://office.example:8443`"),
            ("wss://office.example", "`https://office.example`"),
            ("ws://office.example:81", "`http://office.example:81`"),
            (
                "https://ann:secret@office.example",
                "`https://office.example`",
            ),
            ("https://office.example:", "`https://office.example`"),
            ("https://office.example:0", "`https://office.example`"),
            ("https://office.example:65536", "`https://office.example`"),
            ("https://office.example:+443", "`https://office.example`"),
            ("*.example.com", "`https://*.example.com`"),
            ("https://*.example.com/", "`https://*.example.com`"),
            ("https://*", "such as `https://"),
            ("https://*.com", "such as `https://"),
            ("https://app-*.example.com", "such as `https://"),
            ("https://*example.com", "such as `https://"),
            ("https://*.127.0.0.1", "such as `https://"),
            ("*://office.example", "such as `https://"),
            ("https://büro.example", "such as `https://"),
            ("https://127.1", "such as `https://"),
            ("https://[::1", "such as `https://"),
            ("https://::1", "such as `https://"),
            ("https://a..example", "such as `https://"),
            ("https://a b", "such as `https://"),
            ("https://a,https://b", "such as `https://"),
            ("https://", "such as `https://"),
            ("file://", "such as `https://"),
            ("null", "such as `https://"),
            ("", "such as `https://"),
        ] {
            let error = allowed(&[entry]).unwrap_err();
            assert!(error.contains(right), "{entry}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_host_header_has_a_host_and_perhaps_a_port() {
        for (text, port) in [
            ("x", None),
            ("x:", None),
            ("x:443", Some(443)),
            ("[::1]", None),
            ("[::1]:8000", Some(8_000)),
            ("127.0.0.1:80", Some(80)),
        ] {
            assert_eq!(Authority::parse(text).unwrap().port, port, "{text}");
        }
        for text in [
            "", ":80", "x:y", "x:99999", "a/b", "u@x", "::1", "x y", "[::1]x", "x\"y",
        ] {
            assert_eq!(Authority::parse(text), None, "{text}");
        }
    }
}
