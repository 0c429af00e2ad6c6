//! The setting `bus_url`: which server carries messages between nodes.
//!
//! ```text
//! redis://[user:password@]host[:port][/database]                     one server; `rediss` is over TLS
//! redis+sentinel://[user:password@]host[:port],…/service[/database]  the service that these Sentinels watch
//! redis-cluster://[user:password@]host[:port],…                      a cluster
//! ```
//!
//! `valkey` can be written for `redis`, and `valkeys` for `rediss`. Errors never contain the text, which may have a
//! password in it.

use percent_encoding::percent_decode_str;

use super::Secret;

/// The port of a Redis server.
const REDIS_PORT: u16 = 6_379;
/// The port of a Redis Sentinel.
const SENTINEL_PORT: u16 = 26_379;
/// What the setting accepts.
const ACCEPTED: &str = "write `redis://<host>:<port>`, `redis+sentinel://<host>,<host>/<service>` or `redis-cluster://<host>,<host>`, with `rediss` for TLS";

/// How the servers of a bus work together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BusMode {
    /// A single server, or a proxy in front of several.
    Single,
    /// Sentinels that know where the service is.
    Sentinel {
        /// The name of the service.
        service: String,
    },
    /// A cluster.
    Cluster,
}

/// A valid `bus_url`.
#[derive(Debug, Clone)]
pub struct BusUrl {
    /// How the servers work together.
    pub mode: BusMode,
    /// Whether to use TLS.
    pub is_tls: bool,
    /// Hosts and ports; at least one.
    pub hosts: Vec<(String, u16)>,
    /// The user, if there is one.
    pub username: Option<String>,
    /// The password, if there is one.
    pub password: Option<Secret>,
    /// The number of the database.
    pub database: i64,
}

impl BusUrl {
    /// Parses the setting. The error says what is wrong and what would be accepted.
    pub fn parse(text: &str) -> Result<BusUrl, String> {
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| format!("is not a URL; {ACCEPTED}"))?;
        let scheme = scheme.replace("valkey", "redis");
        let (is_tls, form) = match scheme.strip_prefix("rediss") {
            Some(form) => (true, form),
            None => match scheme.strip_prefix("redis") {
                Some(form) => (false, form),
                None => return Err(format!("has an unknown scheme; {ACCEPTED}")),
            },
        };
        if rest.contains(['?', '#']) {
            return Err(format!(
                "must not have a query or a fragment; in a password, write `?` as %3F and `#` as %23; {ACCEPTED}"
            ));
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (username, password, hosts) = split_user(authority)?;
        let port = match form {
            "+sentinel" => SENTINEL_PORT,
            _ => REDIS_PORT,
        };
        let hosts = hosts
            .split(',')
            .map(|host| parse_host(host, port))
            .collect::<Result<Vec<_>, _>>()?;
        let (mode, database) = match form {
            "" if hosts.len() > 1 => {
                return Err(format!(
                    "names several hosts, which requires `redis+sentinel` or `redis-cluster`; {ACCEPTED}"
                ));
            }
            "" => (BusMode::Single, path),
            "+sentinel" => {
                let (service, database) = path.split_once('/').unwrap_or((path, ""));
                if service.is_empty() {
                    return Err(
                        "has no service; write `redis+sentinel://<host>,<host>/<service>`".into(),
                    );
                }
                let service = decoded(service)?;
                (BusMode::Sentinel { service }, database)
            }
            "-cluster" if path.is_empty() => (BusMode::Cluster, ""),
            "-cluster" => {
                return Err(
                    "has a path, but a cluster has only one database; write `redis-cluster://<host>,<host>`"
                        .into(),
                );
            }
            _ => return Err(format!("has an unknown scheme; {ACCEPTED}")),
        };
        let database = match database {
            "" => 0,
            number => number.parse::<u16>().map(i64::from).map_err(
                |_| "has a database that is not a number; write `redis://<host>:<port>/<number>`",
            )?,
        };
        Ok(BusUrl {
            mode,
            is_tls,
            hosts,
            username,
            password,
            database,
        })
    }
}

type User<'a> = (Option<String>, Option<Secret>, &'a str);

/// Splits the user and the password from the hosts.
fn split_user(authority: &str) -> Result<User<'_>, String> {
    let Some((user, hosts)) = authority.rsplit_once('@') else {
        return Ok((None, None, authority));
    };
    let (name, password) = match user.split_once(':') {
        Some((name, password)) => (name, Some(Secret::from(decoded(password)?))),
        None => (user, None),
    };
    let name = Some(decoded(name)?).filter(|name| !name.is_empty());
    if name.is_some() && password.is_none() {
        return Err(
            "has a user without a password; write `redis://<user>:<password>@<host>`".into(),
        );
    }
    Ok((name, password, hosts))
}

fn parse_host(text: &str, default: u16) -> Result<(String, u16), String> {
    let wrong_port = || "has a port that is not a number from 1 to 65535".to_owned();
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':')),
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    if host.is_empty() {
        return Err(format!("has no host; {ACCEPTED}"));
    }
    let port = match port {
        Some(port) => port.parse().map_err(|_| wrong_port())?,
        None => default,
    };
    match port {
        0 => Err(wrong_port()),
        _ => Ok((decoded(host)?, port)),
    }
}

fn decoded(text: &str) -> Result<String, String> {
    let decoded = percent_decode_str(text).decode_utf8();
    let decoded = decoded.map_err(|_| "is not UTF-8 after percent-decoding")?;
    Ok(decoded.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> BusUrl {
        BusUrl::parse(text).unwrap_or_else(|problem| panic!("{text}: {problem}"))
    }

    #[test]
    fn every_form_of_the_url_is_understood() {
        let one = parsed("redis://bus");
        assert_eq!(
            (one.mode, one.is_tls, one.database),
            (BusMode::Single, false, 0)
        );
        assert_eq!(one.hosts, [("bus".into(), 6_379)]);
        let one = parsed("rediss://ann:p%40ss%2Fword@[::1]:7000/3");
        assert_eq!((one.is_tls, one.database), (true, 3));
        assert_eq!(one.hosts, [("::1".into(), 7_000)]);
        assert_eq!(one.username.as_deref(), Some("ann"));
        assert_eq!(one.password.unwrap().reveal(), "p@ss/word");
        let alone = parsed("redis://:secret@bus");
        assert_eq!(
            (alone.username, alone.password.unwrap().reveal()),
            (None, "secret")
        );
        let watched = parsed("redis+sentinel://a,b:9/main/1");
        let service = BusMode::Sentinel {
            service: "main".into(),
        };
        assert_eq!((watched.mode, watched.database), (service, 1));
        assert_eq!(watched.hosts, [("a".into(), 26_379), ("b".into(), 9)]);
        assert!(parsed("rediss+sentinel://a/main").is_tls);
        assert_eq!(parsed("redis-cluster://a,b").mode, BusMode::Cluster);
        assert_eq!(parsed("valkey://a").mode, BusMode::Single);
        assert!(parsed("valkeys-cluster://a").is_tls);
    }

    #[test]
    fn what_is_wrong_with_a_url_is_said_without_its_password() {
        for (text, expected) in [
            ("bus:6379", "is not a URL"),
            ("http://x:hidden@bus", "unknown scheme"),
            ("redis-ring://x:hidden@bus", "unknown scheme"),
            ("redis://x:hidden@", "has no host"),
            ("redis://x:hidden@a,b", "several hosts"),
            ("redis://x:hidden@a:0", "a port"),
            ("redis://x:hidden@a:hidden", "a port"),
            ("redis://x:hid?den@a", "must not have a query"),
            ("redis://hidden@a", "a user without a password"),
            ("redis://x:hidden@a/hidden", "a database"),
            ("redis+sentinel://x:hidden@a", "has no service"),
            ("redis-cluster://x:hidden@a/1", "only one database"),
            ("redis://x:hidden%ff@a", "is not UTF-8"),
        ] {
            let problem = BusUrl::parse(text).unwrap_err();
            assert!(problem.contains(expected), "{text}: {problem}");
            assert!(!problem.contains("hid"), "{problem}");
        }
    }
}
