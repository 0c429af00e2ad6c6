//! What a trusted proxy reports about a request: the host, port and scheme that the browser used, and the client's address.
//!
//! Any client can send these headers, so they count only if the connection is from one of `trusted_proxies`. If several
//! proxies have each added a value, the first one is that of the outermost proxy.

use std::net::{IpAddr, SocketAddr};

use rocket::Request;

use super::credential::tidings;
use crate::config::origin::{Authority, Origin, parse_port};
use crate::config::{ORIGIN_MAX_BYTES, Settings};

fn settings<'r>(request: &'r Request<'_>) -> &'r Settings {
    tidings(request).settings()
}

fn is_trusted(request: &Request<'_>, address: IpAddr) -> bool {
    let mut proxies = settings(request).trusted_proxies.iter();
    proxies.any(|network| network.contains(address))
}

/// Returns the values of a header in order, or nothing if the connection is not from a trusted proxy.
pub(super) fn forwarded_values<'r>(
    request: &'r Request<'_>,
    name: &str,
) -> impl DoubleEndedIterator<Item = &'r str> {
    let peer = request.remote().map(|peer| peer.ip());
    let is_from_proxy = peer.is_some_and(|peer| is_trusted(request, peer));
    let lines: Vec<&str> = request.headers().get(name).collect();
    lines
        .into_iter()
        .filter(move |_| is_from_proxy)
        .flat_map(|line| line.split(','))
        .map(str::trim)
}

/// Whether the client used TLS, with this server or, as it reports, with a trusted proxy.
pub(super) fn is_encrypted(request: &Request<'_>) -> bool {
    // Some proxies send `wss` with a handshake.
    let is_secure = |scheme: &str| matches!(&*scheme.to_ascii_lowercase(), "https" | "wss");
    let scheme = forwarded_values(request, "X-Forwarded-Proto").next();
    scheme.is_some_and(is_secure) || request.rocket().config().tls_enabled()
}

/// The page that sends a request, by its `Origin`.
pub(super) enum Page {
    /// No `Origin`: the client is not a browser, or the request only reads. Browsers send `Origin` with every request that
    /// writes or opens a WebSocket.
    None,
    /// A page of this origin.
    At(Origin),
    /// `null`, an invalid origin, or more than one.
    Unknown,
}

pub(super) fn page(request: &Request<'_>) -> Page {
    let mut origins = request.headers().get("Origin");
    match (origins.next(), origins.next()) {
        (None, _) => Page::None,
        (Some(origin), None) if origin.len() > ORIGIN_MAX_BYTES => Page::Unknown,
        (Some(origin), None) => Origin::parse(origin).map_or(Page::Unknown, Page::At),
        (Some(_), Some(_)) => Page::Unknown,
    }
}

/// Whether the page that sent the request is ours or of an origin in `allowed_origins`. Also true without `Origin`, so this
/// is meaningful only for requests that write or open a WebSocket.
pub(super) fn is_own_page(request: &Request<'_>) -> bool {
    match page(request) {
        Page::None => true,
        Page::At(origin) => {
            settings(request).allowed_origins.names(&origin) || is_ours(request, &origin)
        }
        Page::Unknown => false,
    }
}

/// Whether an origin is that of this server, as the browser sees it.
fn is_ours(request: &Request<'_>, origin: &Origin) -> bool {
    let forwarded = forwarded_values(request, "X-Forwarded-Host").next();
    let host = forwarded
        .and_then(Authority::parse)
        .or_else(|| Authority::parse(request.headers().get_one("Host")?));
    let Some(Authority { host, port }) = host else {
        return false;
    };
    // If the proxy reports no scheme, the browser may have used either.
    let fits_scheme = match origin.scheme() {
        "https" => true,
        "http" => !is_encrypted(request),
        _ => false,
    };
    // The port that a proxy reports counts only if its host has none.
    let reported_port = forwarded_values(request, "X-Forwarded-Port")
        .next()
        .and_then(parse_port);
    let fits_port = match port.or(reported_port) {
        None => origin.port() == origin.default_port(),
        // The proxy's default port for HTTP also stands for the browser's default port for HTTPS.
        Some(80) => matches!(
            (origin.scheme(), origin.port()),
            (_, Some(80)) | ("https", Some(443))
        ),
        port => origin.port() == port,
    };
    fits_scheme && fits_port && host == *origin.host()
}

/// Returns the client's address: the peer's, or what a trusted proxy reports in Rocket's `ip_header` (`X-Real-IP`), or else
/// in `X-Forwarded-For`. None if there is no connection.
pub(super) fn client_address(request: &Request<'_>) -> Option<IpAddr> {
    let peer = request.remote()?.ip().to_canonical();
    // `ip_header = false` means that no header is trusted.
    let Some(header) = &request.rocket().config().ip_header else {
        return Some(peer);
    };
    if let Some(address) = forwarded_values(request, header.as_str())
        .next()
        .and_then(parse_address)
        && !header.as_str().eq_ignore_ascii_case("X-Forwarded-For")
    {
        return Some(address);
    }
    // Each proxy appends its peer's address. The last one that is not a trusted proxy is the client's; the client itself
    // may have written everything before it.
    let mut client = peer;
    for text in forwarded_values(request, "X-Forwarded-For").rev() {
        let Some(address) = parse_address(text) else {
            break;
        };
        client = address;
        if !is_trusted(request, address) {
            break;
        }
    }
    Some(client)
}

/// Parses an address, to which some proxies append a port.
fn parse_address(text: &str) -> Option<IpAddr> {
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let address = bare.unwrap_or(text).parse();
    let with_port = || text.parse().map(|address: SocketAddr| address.ip());
    let address: IpAddr = address.or_else(|_| with_port()).ok()?;
    Some(address.to_canonical())
}
