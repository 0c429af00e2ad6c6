//! The proxy in front of the server: which proxies are trusted, and the path below which the server is reachable.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Maximum length of a path prefix, in bytes.
const PREFIX_MAX_BYTES: usize = 256;

/// An address or a network: an entry of `trusted_proxies`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    address: IpAddr,
    /// The number of leading bits that the addresses of the network have in common.
    bits: u8,
}

/// An entry of `trusted_proxies` that is neither an address nor a network.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is neither an IP address nor a network; write `10.0.0.7`, `10.0.0.0/8` or `fd00::/8`"
)]
pub struct NetworkError(String);

impl Network {
    fn parse(text: &str) -> Option<Network> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let all: u8 = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => all,
            Some(bits) if bits.bytes().all(|byte| byte.is_ascii_digit()) => {
                bits.parse().ok().filter(|bits| *bits <= all)?
            }
            Some(_) => return None,
        };
        // A socket that serves both families reports IPv4 peers as `::ffff:a.b.c.d`.
        let canonical = address.to_canonical();
        let bits = match canonical.is_ipv4() && address.is_ipv6() {
            true => bits.checked_sub(96)?,
            false => bits,
        };
        Some(Network {
            address: canonical,
            bits,
        })
    }

    /// Whether the network contains an address.
    pub fn contains(&self, address: IpAddr) -> bool {
        let shared = match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                (network.to_bits() ^ address.to_bits()).leading_zeros()
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                (network.to_bits() ^ address.to_bits()).leading_zeros()
            }
            _ => return false,
        };
        shared >= u32::from(self.bits)
    }

    /// Returns the loopback addresses.
    pub(super) fn loopback() -> Vec<Network> {
        let network = |address: [u8; 4], bits| Network {
            address: address.into(),
            bits,
        };
        let v6 = std::net::Ipv6Addr::LOCALHOST.into();
        vec![
            network([127, 0, 0, 0], 8),
            Network {
                address: v6,
                bits: 128,
            },
        ]
    }
}

impl TryFrom<String> for Network {
    type Error = NetworkError;

    fn try_from(text: String) -> Result<Network, NetworkError> {
        Network::parse(text.trim()).ok_or(NetworkError(text))
    }
}

impl From<Network> for String {
    fn from(Network { address, bits }: Network) -> String {
        let all = if address.is_ipv4() { 32 } else { 128 };
        match bits == all {
            true => address.to_string(),
            false => format!("{address}/{bits}"),
        }
    }
}

/// A path prefix such as `/tidings`, or an empty one. It needs no escaping in a URL, a header or HTML.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PathPrefix(String);

/// A `base_path` that is not valid.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is not a valid path prefix; write a path such as `/tidings`: segments of letters, digits, `-`, \
     `.`, `_` and `~`, each after a `/`, at most {PREFIX_MAX_BYTES} bytes"
)]
pub struct PathPrefixError(String);

impl PathPrefix {
    /// Parses `/a/b`, with an optional slash at the end. Returns `None` for anything else.
    pub fn parse(text: &str) -> Option<PathPrefix> {
        let path = text.trim();
        let path = path.strip_suffix('/').unwrap_or(path);
        let of_segment = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        // Browsers resolve `.` and `..` as relative path segments.
        let is_segment =
            |segment: &str| !matches!(segment, "" | "." | "..") && segment.bytes().all(of_segment);
        let is_sound = match path.strip_prefix('/') {
            Some(segments) => segments.split('/').all(is_segment),
            None => text.trim() == "/",
        };
        (is_sound && path.len() <= PREFIX_MAX_BYTES).then(|| PathPrefix(path.to_owned()))
    }

    /// Returns the prefix without a slash at the end, so that a path can follow.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Appends an inner prefix. Returns `None` if the result is too long.
    pub fn join(self, inner: &PathPrefix) -> Option<PathPrefix> {
        let path = format!("{}{}", self.0, inner.0);
        (path.len() <= PREFIX_MAX_BYTES).then_some(PathPrefix(path))
    }
}

impl TryFrom<String> for PathPrefix {
    type Error = PathPrefixError;

    fn try_from(text: String) -> Result<PathPrefix, PathPrefixError> {
        PathPrefix::parse(&text).ok_or(PathPrefixError(text))
    }
}

impl From<PathPrefix> for String {
    fn from(PathPrefix(path): PathPrefix) -> String {
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(network: &str, address: &str) -> bool {
        Network::parse(network)
            .unwrap()
            .contains(address.parse().unwrap())
    }

    #[test]
    fn a_network_has_the_addresses_that_share_its_first_bits() {
        for (network, address) in [
            ("10.0.0.7", "10.0.0.7"),
            ("10.0.0.7", "::ffff:10.0.0.7"),
            ("::ffff:10.0.0.7", "10.0.0.7"),
            ("::ffff:10.0.0.0/104", "10.9.9.9"),
            ("10.1.2.3/8", "10.255.0.1"),
            ("172.16.0.0/12", "172.31.255.255"),
            ("0.0.0.0/0", "203.0.113.9"),
            ("::1", "::1"),
            ("fd00::/8", "fd12:3456::1"),
            ("::/0", "2001:db8::1"),
        ] {
            assert!(contains(network, address), "{network} {address}");
        }
        for (network, address) in [
            ("10.0.0.7", "10.0.0.8"),
            ("172.16.0.0/12", "172.32.0.0"),
            ("0.0.0.0/0", "::1"),
            ("::/0", "127.0.0.1"),
            ("fd00::/8", "fe80::1"),
        ] {
            assert!(!contains(network, address), "{network} {address}");
        }
        for text in [
            "",
            "localhost",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0",
            "::/129",
            "*",
        ] {
            assert_eq!(Network::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_prefix_is_a_path_that_leads_nowhere_else() {
        for (text, path) in [
            ("/tidings", "/tidings"),
            ("/tidings/", "/tidings"),
            (" /a/b-c.d_e~f ", "/a/b-c.d_e~f"),
            ("/", ""),
        ] {
            assert_eq!(PathPrefix::parse(text).unwrap().as_str(), path);
        }
        let long = format!("/{}", "x".repeat(PREFIX_MAX_BYTES));
        for text in [
            "",
            "tidings",
            "//evil.example",
            "/a//b",
            "/a//",
            "/..",
            "/a/../b",
            "/.",
            "/a b",
            "/a\"b",
            "/a'b",
            "/a<b",
            "/a\\b",
            "/a%2e",
            "/a?b",
            "/a#b",
            "/a;b",
            "/a\r\nb",
            "/ä",
            "https://x/a",
            &long,
        ] {
            assert_eq!(PathPrefix::parse(text), None, "{text:?}");
        }
    }
}
