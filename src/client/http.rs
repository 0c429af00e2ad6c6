//! Requests over hyper, with pooled connections.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Response, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use secrecy::zeroize::Zeroizing;

use super::ClientError;
use super::proxy::Connector;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections to any server. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Http(legacy::Client<HttpsConnector<Connector>, Full<Bytes>>);

/// Which servers are trusted over TLS.
pub(super) enum Trust {
    /// Those that the certificate authorities of the operating system vouch for, or those in `SSL_CERT_FILE`.
    Authorities,
    /// Any: the server is this process.
    #[cfg(feature = "cli")]
    Anyone,
}

/// A request that is being built.
pub(super) struct Request {
    uri: String,
    method: Method,
    headers: HeaderMap,
    body: String,
    problem: Option<ClientError>,
}

/// The head of an answer, and its body as it arrives.
pub(super) struct Answer {
    pub(super) status: u16,
    /// The requested URI.
    pub(super) uri: String,
    headers: HeaderMap,
    body: Incoming,
}

impl Http {
    pub(super) fn new(has_tls: bool, trust: &Trust) -> Result<Http, ClientError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| ClientError::Unreachable(error.to_string()))?;
        let tls = match trust {
            Trust::Authorities => {
                let mut roots = rustls::RootCertStore::empty();
                if has_tls {
                    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                }
                tls.with_root_certificates(roots)
            }
            #[cfg(feature = "cli")]
            Trust::Anyone => {
                let verifier = Arc::new(crate::unverified::Unverified(provider));
                tls.dangerous().with_custom_certificate_verifier(verifier)
            }
        };
        let tls = tls.with_no_client_auth();
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.set_nodelay(true);
        let connector = match trust {
            Trust::Authorities => Connector::of_environment(tcp),
            #[cfg(feature = "cli")]
            Trust::Anyone => Connector::direct(tcp),
        };
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let builder = legacy::Client::builder(TokioExecutor::new());
        Ok(Http(builder.build(connector)))
    }

    /// Sends a request, and returns as soon as the head of the answer has arrived.
    pub(super) async fn send(&self, request: Request) -> Result<Answer, ClientError> {
        if let Some(problem) = request.problem {
            return Err(problem);
        }
        let uri: Uri = request
            .uri
            .parse()
            .map_err(|_| ClientError::Url(request.uri.clone()))?;
        let mut sent = hyper::Request::new(Full::from(request.body));
        *sent.method_mut() = request.method;
        *sent.uri_mut() = uri;
        *sent.headers_mut() = request.headers;
        let answer = self.0.request(sent).await;
        let (head, body) = answer
            .map_err(|error| unreachable(&error))
            .map(Response::into_parts)?;
        Ok(Answer {
            status: head.status.as_u16(),
            uri: request.uri,
            headers: head.headers,
            body,
        })
    }
}

impl Request {
    pub(super) fn new(method: Method, uri: String) -> Request {
        let mut headers = HeaderMap::new();
        let agent = concat!("tidings/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        Request {
            uri,
            method,
            headers,
            body: String::new(),
            problem: None,
        }
    }

    /// Sets a header. A value that no header can have fails the request.
    pub(super) fn header(mut self, name: HeaderName, value: &str) -> Request {
        match HeaderValue::from_str(value) {
            Ok(mut value) => {
                value.set_sensitive(name == AUTHORIZATION);
                self.headers.insert(name, value);
            }
            Err(_) => {
                let problem = format!("the value of `{name}` has characters that no header has");
                self.problem = Some(ClientError::Unreachable(problem));
            }
        }
        self
    }

    pub(super) fn bearer(self, token: &str) -> Request {
        self.header(AUTHORIZATION, &Zeroizing::new(format!("Bearer {token}")))
    }

    pub(super) fn body(mut self, body: String) -> Request {
        self.body = body;
        self
    }
}

impl Answer {
    /// Returns a header, if it is text.
    pub(super) fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Returns the next piece of the body, or `None` at its end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    // Ignore trailers.
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
                Some(Err(error)) => return Err(unreachable(&error)),
            }
        }
    }

    /// Returns the body. Fails if it is larger than this.
    pub(super) async fn bytes(mut self, max_bytes: usize) -> Result<Vec<u8>, ClientError> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            body.extend_from_slice(&chunk);
            if body.len() > max_bytes {
                return Err(ClientError::Unreadable("it is too large".into()));
            }
        }
        Ok(body)
    }
}

/// Returns an error with the innermost cause, which is the most specific.
fn unreachable(error: &(dyn std::error::Error + 'static)) -> ClientError {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    ClientError::Unreachable(cause.to_string())
}
