//! The path below which a proxy serves Tidings: `base_path`, or what a trusted proxy reports for a request.

use std::collections::HashSet;

use rocket::Request;
use rocket::fairing::{AdHoc, Fairing};
use rocket::http::uri::Origin;

use super::credential::tidings;
use super::forwarded::forwarded_values;
use crate::config::proxy::PathPrefix;

/// Returns the prefix that every generated URL begins with.
pub(super) fn prefix(request: &Request<'_>) -> PathPrefix {
    // Each proxy on the way appends the prefix that it removed.
    let mut parts = forwarded_values(request, "X-Forwarded-Prefix")
        .filter(|part| !part.is_empty())
        .peekable();
    let forwarded = parts.peek().is_some().then(|| {
        parts.try_fold(PathPrefix::default(), |outer, part| {
            outer.join(&PathPrefix::parse(part)?)
        })
    });
    forwarded
        .flatten()
        .or_else(|| tidings(request).settings().base_path.clone())
        .unwrap_or_default()
}

/// The first path segments of our routes.
struct Own {
    base: &'static str,
    /// Whether we serve the base itself.
    has_home: bool,
    parts: HashSet<String>,
}

impl Own {
    fn has(&self, path: &str) -> bool {
        let below = match path.strip_prefix(self.base) {
            Some("" | "/") => return self.has_home,
            below => below.and_then(|below| below.strip_prefix('/')),
        };
        let part = below.and_then(|below| below.split('/').next());
        part.is_some_and(|part| self.parts.contains(part))
    }
}

/// Returns a fairing that removes `base_path` before routing if the proxy passes it on. It changes only paths of our routes
/// below `base`. It does not change a path that already matches a route: the proxy has then removed the prefix, which happens
/// to have the name of one of our routes.
pub(super) fn fairing(base: &'static str, has_home: bool, prefix: PathPrefix) -> impl Fairing {
    let routes = super::routes();
    let first_part = |route: &rocket::Route| route.uri.path().split('/').nth(1).map(str::to_owned);
    let parts = routes.iter().filter_map(first_part);
    let served = Own {
        base: base.trim_end_matches('/'),
        has_home,
        parts: parts.filter(|part| !part.starts_with('<')).collect(),
    };
    AdHoc::on_request("Tidings: base path", move |request, _| {
        let uri = request.uri();
        let path = uri.path().as_str();
        let rest = path.strip_prefix(prefix.as_str());
        if let Some(rest) = rest.filter(|rest| served.has(rest) && !served.has(path)) {
            let query = uri
                .query()
                .map_or(String::new(), |query| format!("?{query}"));
            let rest = if rest.is_empty() { "/" } else { rest };
            if let Ok(uri) = Origin::parse_owned(format!("{rest}{query}")) {
                request.set_uri(uri);
            }
        }
        Box::pin(async {})
    })
}
