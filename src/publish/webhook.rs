//! An HTTP webhook: a POST for each event, in order, until it is answered with 2xx.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request, StatusCode, Uri,
    body::Bytes,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT},
};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::Deserialize;
use tokio::time::timeout;

use super::{Inbox, Sink, cursor_name, relative_to, tls};
use crate::{
    error::{Error, Result},
    event::Event,
    secret::Secret,
    source::percent_decoded,
};

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);

/// How much of an answer is read, for the log and so that the connection can be used again.
const LONGEST_ANSWER: usize = 64 << 10;

/// One `[[webhook]]` of a config.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `http://` or `https://`; many carry a token in their path, so it is treated as a secret.
    url: Secret,
    /// Headers of each request.
    #[serde(default)]
    headers: BTreeMap<String, Secret>,
    /// A file with a token, sent as `Authorization: Bearer ...`.
    token_file: Option<PathBuf>,
    /// The CA that signed the server's certificate, where the system does not know it.
    ca: Option<PathBuf>,
}

impl Config {
    pub fn relative_to(&mut self, folder: &std::path::Path) {
        relative_to(&mut self.token_file, folder);
        relative_to(&mut self.ca, folder);
    }

    /// What is wrong with it, if something is.
    pub fn fault(&self) -> Option<String> {
        if self.uri().is_err() {
            return Some("url is no address of a web server: it should look like https://example.org/hook".into());
        }
        let bad = self.headers.iter().find(|(name, value)| header(name, value).is_err());
        bad.map(|(name, _)| format!("headers: `{name}` or its value can't be an HTTP header"))
    }

    pub fn name(&self) -> String {
        let uri = self.uri().ok();
        let host = uri.as_ref().and_then(Uri::host).unwrap_or_default();
        cursor_name("webhook", host, self.url.expose())
    }

    fn uri(&self) -> Result<Uri, ()> {
        let uri: Uri = self.url.expose().parse().map_err(drop)?;
        match (uri.scheme_str(), uri.host()) {
            (Some("http" | "https"), Some(host)) if !host.is_empty() => Ok(uri),
            _ => Err(()),
        }
    }
}

fn header(name: &str, value: &Secret) -> Result<(HeaderName, HeaderValue), ()> {
    let mut value = HeaderValue::from_str(value.expose()).map_err(drop)?;
    value.set_sensitive(true);
    Ok((name.parse().map_err(drop)?, value))
}

pub struct Webhook {
    name: String,
    uri: Uri,
    headers: Vec<(HeaderName, HeaderValue)>,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

/// What became of an event.
enum Answer {
    Taken(StatusCode),
    /// It will never be taken.
    Refused(String),
}

impl Webhook {
    /// Errors: `Config` when its token or CA can't be read.
    pub fn new(config: &Config) -> Result<Self> {
        let bad = || Error::config(config.fault().unwrap_or_else(|| "the webhook can't be used".into()));
        let uri = config.uri().map_err(|()| bad())?;
        let mut headers = Vec::new();
        for (name, value) in &config.headers {
            headers.push(header(name, value).map_err(|()| bad())?);
        }
        if let Some(path) = &config.token_file {
            let bearer = Secret::new(format!("Bearer {}", Secret::from_file(path)?.expose()));
            let value = header(AUTHORIZATION.as_str(), &bearer)
                .map_err(|()| Error::config(format!("{} holds no token that HTTP can carry", path.display())))?;
            headers.push(value);
        }
        let secure = uri.scheme_str() == Some("https");
        // The system's CAs are read only where they are needed.
        let roots = match (secure, &config.ca) {
            (true, ca) => tls::client(ca.as_deref(), None)?,
            (false, _) => tls::none()?,
        };
        let connector = HttpsConnectorBuilder::new().with_tls_config(roots).https_or_http().enable_http1().build();
        Ok(Webhook {
            name: config.name(),
            uri,
            headers,
            client: Client::builder(TokioExecutor::new()).build(connector),
        })
    }

    async fn post(&self, event: &Event, json: Vec<u8>) -> Result<Answer> {
        let mut request = Request::post(&self.uri)
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, concat!("actiond/", env!("CARGO_PKG_VERSION")))
            // The same at each try: a receiver that knows it drops the repeat.
            .header("Idempotency-Key", format!("{}-{}", event.id, event.seq));
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let request =
            request.body(Full::new(Bytes::from(json))).map_err(|e| Error::internal("an HTTP request").caused_by(e))?;
        let answer = timeout(ANSWER, async {
            let answer = self.client.request(request).await.map_err(|e| failed(&e))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), LONGEST_ANSWER).collect().await;
            Ok((status, body.map(|b| b.to_bytes()).unwrap_or_default()))
        });
        let (status, body) = match answer.await {
            Ok(answer) => answer?,
            Err(_) => return Err(Error::unavailable(format!("no answer within {} s", ANSWER.as_secs()))),
        };
        if status.is_success() {
            return Ok(Answer::Taken(status));
        }
        let said = self.without_secrets(&String::from_utf8_lossy(&body));
        let said: String = said.chars().filter(|c| !c.is_control()).take(200).collect();
        let said = format!("the answer was {status}{}{said}", if said.is_empty() { "" } else { ": " });
        match status {
            // About this very event, and it will not get better: the ones behind it must not wait for ever.
            StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNPROCESSABLE_ENTITY => {
                Ok(Answer::Refused(said))
            }
            _ => Err(Error::unavailable(said)),
        }
    }

    /// An answer without our address's path and our headers, which servers like to repeat.
    fn without_secrets(&self, answer: &str) -> String {
        let address = self.uri.path_and_query().map(|p| p.as_str()).unwrap_or_default();
        let words = address.split(['/', '?', '&', '=', ';']).map(String::from);
        let login = self.uri.authority().and_then(|a| a.as_str().rsplit_once('@')).map(|(login, _)| login);
        let login = login.into_iter().flat_map(|login| login.split(':')).map(String::from);
        let headers = self.headers.iter().filter_map(|(_, value)| value.to_str().ok());
        let headers = headers.flat_map(|value| value.split(' ')).map(String::from);
        let mut words: Vec<String> = words.chain(login).chain(headers).collect();
        words.extend(words.clone().iter().map(|word| percent_decoded(word)));
        // What is shorter keeps no secret, and would make stars of the rest.
        words.retain(|word| word.len() >= 4);
        words.sort_by_key(|word| std::cmp::Reverse(word.len()));
        words.iter().fold(answer.to_owned(), |answer, word| answer.replace(word.as_str(), "***"))
    }
}

/// What went wrong, without the address, which may hold a secret.
fn failed(e: &hyper_util::client::legacy::Error) -> Error {
    let mut cause: &dyn std::error::Error = e;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    let what = if e.is_connect() { "cannot connect" } else { "the connection failed" };
    let hint = match ["UnknownIssuer", "BadSignature"].iter().any(|e| cause.to_string().contains(e)) {
        true => " (no known CA signed the server's certificate; `ca` names a file with one)",
        false => "",
    };
    Error::unavailable(format!("{what}: {cause}{hint}"))
}

impl Sink for Webhook {
    fn name(&self) -> &str {
        &self.name
    }

    fn target(&self) -> String {
        format!("webhook {}://{}", self.uri.scheme_str().unwrap_or_default(), host(&self.uri))
    }

    async fn session(&mut self, inbox: &mut Inbox) -> Result<()> {
        while let Some(delivery) = inbox.next().await {
            let event = &delivery.event;
            match self.post(event, delivery.json()?).await? {
                Answer::Taken(_) => inbox.acknowledge(event.seq),
                Answer::Refused(said) => {
                    log::error!("{}: event {} is left out: {said}", self.target(), event.seq);
                    inbox.refused(event.seq);
                }
            }
            inbox.connected();
        }
        Ok(())
    }

    async fn test(&mut self, event: &Event) -> Result<String> {
        let json = serde_json::to_vec(event).map_err(|e| Error::internal("JSON").caused_by(e))?;
        match self.post(event, json).await? {
            Answer::Taken(status) => Ok(format!("answered {status}")),
            Answer::Refused(said) => Err(Error::unavailable(said)),
        }
    }
}

/// Host and port, without a user or password.
fn host(uri: &Uri) -> String {
    let host = uri.host().unwrap_or_default();
    uri.port_u16().map_or_else(|| host.into(), |port| format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn an_answer_that_repeats_the_address_shows_nothing_of_it() {
        let text = "url = \"http://user:passw0rd@example.org/services/T0/s3cr%2Bet?key=hunter2\"\n\
                    headers = { Authorization = \"Bearer k3y-abc\" }";
        let webhook = Webhook::new(&config(text)).unwrap();
        for answer in [
            "Cannot POST /services/T0/s3cr%2Bet?key=hunter2",
            "no route for s3cr+et with hunter2",
            "token k3y-abc is wrong, and passw0rd as well",
        ] {
            let said = webhook.without_secrets(answer);
            assert!(said.contains("***"), "{said}");
            for secret in ["s3cr", "hunter2", "k3y-abc", "passw0rd"] {
                assert!(!said.contains(secret), "{said}");
            }
        }
        assert_eq!(webhook.without_secrets("the field `label` is missing"), "the field `label` is missing");
    }

    #[test]
    fn neither_its_path_nor_its_headers_are_shown() {
        let text = "url = \"http://u:pw@example.org:81/T0/s3cret\"\nheaders = { X-Key = \"k3y\" }";
        let config = config(text);
        assert_eq!(config.fault(), None);
        let webhook = Webhook::new(&config).unwrap();
        let shown = format!("{config:?} {} {} {:?}", webhook.target(), webhook.name(), webhook.headers);
        assert!(["s3cret", "k3y", "pw"].iter().all(|secret| !shown.contains(secret)), "{shown}");
        assert_eq!(webhook.target(), "webhook http://example.org:81");
    }

    #[test]
    fn faults_are_told_without_the_address() {
        for url in ["ftp://x/s3cret", "s3cret", "http://", "http:// x/s3cret"] {
            let fault = config(&format!("url = \"{url}\"")).fault().unwrap();
            assert!(fault.contains("should look like") && !fault.contains("s3cret"), "{fault}");
        }
        assert!(config("url = \"http://x\"\nheaders = { \"a b\" = \"c\" }").fault().unwrap().contains("`a b`"));
    }
}
