//! The HTTP server: `/metrics` and `/health`. On loopback unless a token is set, and nothing is told without it then.
//!
//! hyper, on the thread for all network: connections and headers are bounded in number, size and time, so that who sends
//! half a request, or a thousand of them, takes nothing from others.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{self, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::{net::TcpListener, runtime::Runtime, task::AbortHandle};
use toml::Spanned;

use crate::{
    error::{Error, Result},
    metrics::{CONTENT_TYPE, Metrics},
    secret::{self, Secret},
};

pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8642);

/// Connections at once; one more ends the oldest.
const MOST_CONNECTIONS: usize = 64;
/// From a connection's beginning, or an answer's end, until a request's headers have come.
const PATIENCE: Duration = Duration::from_secs(5);
/// A connection lasts no longer than this, whatever it does.
const LONGEST: Duration = Duration::from_secs(120);
const LARGEST_HEADERS: usize = 16 * 1024;

/// `[web]` as typed.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    listen: Option<Spanned<String>>,
    token: Option<Spanned<Secret>>,
    token_file: Option<Spanned<PathBuf>>,
}

/// `[web]` as checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub listen: SocketAddr,
    pub token: Option<Secret>,
}

impl Config {
    /// Errors: what is wrong, and where. Relative paths start from `folder`.
    pub fn settings(&self, folder: &Path) -> Result<Settings, (Option<Range<usize>>, Error)> {
        let listen = match &self.listen {
            Some(listen) => address(listen.get_ref()).map_err(|e| (Some(listen.span()), e))?,
            None => DEFAULT_LISTEN,
        };
        let token = match (&self.token, &self.token_file) {
            (Some(_), Some(file)) => {
                return Err((Some(file.span()), Error::config("give `token` or `token_file`, not both")));
            }
            (Some(token), None) => {
                let expanded = secret::expand(token.get_ref().expose()).map_err(|e| (Some(token.span()), e))?;
                if expanded.is_empty() {
                    return Err((Some(token.span()), Error::config("the token is empty")));
                }
                Some(Secret::new(expanded))
            }
            (None, Some(file)) => {
                Some(Secret::from_file(&folder.join(file.get_ref())).map_err(|e| (Some(file.span()), e))?)
            }
            (None, None) => None,
        };
        let settings = Settings { listen, token };
        settings.check().map_err(|e| (self.listen.as_ref().map(Spanned::span), e))?;
        Ok(settings)
    }
}

impl Settings {
    /// Errors: `Config` when everybody could ask.
    pub fn check(&self) -> Result<()> {
        if self.listen.ip().is_loopback() || self.token.is_some() {
            return Ok(());
        }
        Err(Error::config(format!(
            "{} can be reached from other machines, so it needs a token: set token_file = \"PATH\" (or token = \
             \"${{VARIABLE}}\") in [web], or listen on 127.0.0.1",
            self.listen
        )))
    }
}

/// Reads `127.0.0.1:8642`, `[::1]:8642` or `localhost:8642`.
pub fn address(text: &str) -> Result<SocketAddr> {
    let numeric = text.strip_prefix("localhost:").map_or(text.into(), |port| format!("127.0.0.1:{port}"));
    let wrong =
        || Error::config(format!("`{text}` is no address to listen on: write 127.0.0.1:8642, or 0.0.0.0:8642 for all"));
    numeric.parse().map_err(|_| wrong())
}

/// A server that listens; it stops when this is dropped.
pub struct Server {
    address: SocketAddr,
    runtime: Option<Runtime>,
}

impl Server {
    /// Begins to listen and to answer, on a thread of its own.
    ///
    /// Errors: `Unavailable` when the address is in use, or not this machine's.
    pub fn start(settings: &Settings, metrics: Arc<Metrics>) -> Result<Server> {
        settings.check()?;
        let cannot = |e: io::Error| {
            Error::unavailable(format!("cannot listen on {}: choose another address in [web]", settings.listen))
                .caused_by(e)
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("web")
            .enable_io()
            .enable_time()
            .build()
            .map_err(cannot)?;
        let listener = runtime.block_on(TcpListener::bind(settings.listen)).map_err(cannot)?;
        let address = listener.local_addr().map_err(cannot)?;
        let door = Arc::new(Door { token: settings.token.as_ref().map(|t| digest(t.expose().as_bytes())), metrics });
        runtime.spawn(serve(listener, door));
        Ok(Server { address, runtime: Some(runtime) })
    }

    /// Where it listens: the port that the system chose where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Who may come in, and what there is.
struct Door {
    /// Its hash: comparing those tells nothing by the time that it takes.
    token: Option<[u8; 32]>,
    metrics: Arc<Metrics>,
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Answers for ever.
async fn serve(listener: TcpListener, door: Arc<Door>) {
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                // Out of descriptors, most likely: they come back.
                log::debug!("web: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let door = door.clone();
        let work = async move {
            let service = service_fn(|request| {
                let response = door.answer(&request);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .max_buf_size(LARGEST_HEADERS)
                .serve_connection(TokioIo::new(stream), service);
            // What goes wrong is the far end's own fault.
            if let Ok(Err(e)) = tokio::time::timeout(LONGEST, connection).await {
                log::debug!("web: {e}");
            }
        };
        open.retain(|task| !task.is_finished());
        while open.len() >= MOST_CONNECTIONS {
            if let Some(oldest) = open.pop_front() {
                oldest.abort();
            }
        }
        open.push_back(tokio::spawn(work).abort_handle());
    }
}

impl Door {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let mut response = self.try_answer(request).unwrap_or_else(|(status, why)| plain(status, why));
        if request.method() == Method::HEAD {
            *response.body_mut() = Full::default();
        }
        response
    }

    fn try_answer(&self, request: &Request<Incoming>) -> Result<Response<Full<Bytes>>, (StatusCode, &'static str)> {
        match &self.token {
            Some(token) => {
                let given = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
                let given =
                    given.and_then(|g| g.split_at_checked(7)).filter(|(s, _)| s.eq_ignore_ascii_case(b"bearer "));
                if given.is_none_or(|(_, given)| digest(given.trim_ascii()) != *token) {
                    return Err((StatusCode::UNAUTHORIZED, "send the header Authorization: Bearer TOKEN\n"));
                }
            }
            // A page of the web can make its visitor's browser ask us under a name of its own.
            None if !is_local(request) => {
                return Err((StatusCode::FORBIDDEN, "ask by 127.0.0.1 or localhost, or set a token in [web]\n"));
            }
            None => {}
        }
        let response = match request.uri().path() {
            "/metrics" | "/health" if ![Method::GET, Method::HEAD].contains(request.method()) => {
                let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "GET only\n");
                response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
                response
            }
            "/metrics" => of_type(StatusCode::OK, CONTENT_TYPE, self.metrics.text()),
            "/health" => {
                let health = self.metrics.health();
                let status = if health.status == "ok" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                of_type(status, "application/json", serde_json::to_string(&health).unwrap_or_default() + "\n")
            }
            _ => plain(StatusCode::NOT_FOUND, "there are /metrics and /health\n"),
        };
        Ok(response)
    }
}

/// Whether a request without a token names this machine as one that is on it would.
fn is_local(request: &Request<Incoming>) -> bool {
    let named = request.headers().get(header::HOST).and_then(|h| h.to_str().ok());
    let Some(host) = request.uri().host().or(named) else { return true };
    let name = match host.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = of_type(status, "text/plain; charset=utf-8", text.to_owned());
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

fn of_type(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn settings(text: &str) -> Result<Settings, String> {
        let config: Config = config::parse_toml(text, "x").map_err(|e| e.to_string())?;
        config.settings(Path::new("/nowhere")).map_err(|(_, e)| e.to_string())
    }

    #[test]
    fn loopback_needs_no_token_and_everything_else_does() {
        assert_eq!(settings("").unwrap(), Settings { listen: DEFAULT_LISTEN, token: None });
        for listen in ["127.0.0.1:0", "localhost:8642", "[::1]:8642", "127.5.5.5:80"] {
            settings(&format!("listen = \"{listen}\"")).unwrap();
        }
        for listen in ["0.0.0.0:8642", "[::]:8642", "10.0.0.5:80"] {
            assert!(settings(&format!("listen = \"{listen}\"")).unwrap_err().contains("token_file"), "{listen}");
            let with = settings(&format!("listen = \"{listen}\"\ntoken = \"hunter2\"")).unwrap();
            assert!(!format!("{with:?}").contains("hunter2"));
        }
        for (bad, why) in [
            ("listen = \"8642\"", "no address"),
            ("listen = \"example.org:80\"", "no address"),
            ("token = \"\"", "empty"),
            ("token = \"${ACTIOND_TEST_NOT_SET}\"", "ACTIOND_TEST_NOT_SET"),
            ("token_file = \"x\"", "/nowhere/x"),
            ("token = \"a\"\ntoken_file = \"x\"", "not both"),
            ("tokn = \"a\"", "did you mean `token`?"),
        ] {
            assert!(settings(bad).unwrap_err().contains(why), "{bad}: {}", settings(bad).unwrap_err());
        }
    }

    #[test]
    fn an_address_in_use_says_so() {
        let settings = Settings { listen: "127.0.0.1:0".parse().unwrap(), token: None };
        let server = Server::start(&settings, Arc::default()).unwrap();
        let again = Settings { listen: server.address(), token: None };
        let e = Server::start(&again, Arc::default()).err().unwrap().to_string();
        assert!(e.contains("cannot listen on 127.0.0.1:") && e.contains("in use"), "{e}");
    }
}
