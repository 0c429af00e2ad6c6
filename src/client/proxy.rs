//! Opens connections, through a proxy if the environment names one: `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`,
//! also in lower case. The proxy tunnels bytes (`CONNECT`), even for `http`, so that streams are not buffered.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower_service::Service;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Connects to a server, or to the proxy in front of it.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    tcp: HttpConnector,
    /// Which servers have a proxy. `None`: none of them.
    proxies: Option<Arc<Matcher>>,
}

impl Connector {
    /// Connects to servers themselves.
    #[cfg(feature = "cli")]
    pub(super) fn direct(tcp: HttpConnector) -> Connector {
        Connector { tcp, proxies: None }
    }

    /// Connects through the proxies that the environment names.
    pub(super) fn of_environment(tcp: HttpConnector) -> Connector {
        Connector {
            tcp,
            proxies: Some(Arc::new(Matcher::from_env())),
        }
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        let proxies = self.proxies.as_ref();
        let Some(proxy) = proxies.and_then(|proxies| proxies.intercept(&server)) else {
            let connecting = self.tcp.call(server);
            return Box::pin(async { Ok(connecting.await?) });
        };
        let scheme = proxy.uri().scheme_str().unwrap_or("http");
        if scheme != "http" {
            let problem = format!(
                "the environment names a proxy with `{scheme}://`; only http:// proxies are supported"
            );
            return Box::pin(async move { Err(problem.into()) });
        }
        let mut tunnel = Tunnel::new(proxy.uri().clone(), self.tcp.clone());
        if let Some(authorization) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(authorization.clone());
        }
        let address = proxy
            .uri()
            .authority()
            .map_or("", |authority| authority.as_str());
        let named = format!("the proxy {address}");
        Box::pin(async move {
            let connected = tunnel.call(with_port(&server)?).await;
            Ok(connected.map_err(|error| format!("{named} does not connect: {error}"))?)
        })
    }
}

/// Returns the URL with an explicit port. Without one, the tunnel would use 443 even for `http`.
fn with_port(server: &Uri) -> Result<Uri, BoxError> {
    let default = if server.scheme_str() == Some("https") {
        443
    } else {
        80
    };
    let host = server.host().unwrap_or_default();
    let port = server.port_u16().unwrap_or(default);
    Ok(format!("http://{host}:{port}/").parse()?)
}
