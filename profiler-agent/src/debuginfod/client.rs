//! Asking debuginfod servers: `GET URL/buildid/HEX/debuginfo` (elfutils, debuginfod(8), "Webapi").
//!
//! What servers send is a stranger's: its size, the time that it takes and the redirects have bounds, and
//! nothing here looks into it.

use std::io::{self, Read as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::crypto::ring;
use tokio::sync::mpsc;
use ureq::http::{Response, StatusCode, header};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, Error};

use super::cache::DebugCache;
use super::settings::{Limits, Server};
use crate::debug_files::hex;

/// How long a connection may take to be there.
const CONNECT: Duration = Duration::from_secs(5);

/// Hops from the server that was named to the one that has the file.
const MOST_REDIRECTS: u32 = 5;

/// What came of one build id.
pub(super) struct Fetched {
    pub(super) build_id: Vec<u8>,
    /// Who sent it. None has it where nobody did and nothing failed.
    pub(super) sent_by: Option<FromServer>,
    /// The servers that could not tell, and why.
    pub(super) failures: Vec<(FromServer, String)>,
}

/// The name of a server, for people.
pub(super) type FromServer = String;

/// Why a server gave nothing.
enum Failure {
    /// It has no such file.
    Absent,
    /// This file can't be had from it.
    File(String),
    /// It is not to be asked again.
    Server(String),
}

/// The servers, and how they are asked.
pub(super) struct Client {
    agent: Agent,
    servers: Vec<(Server, bool)>,
    limits: Limits,
    /// Bytes that may still be fetched.
    room_bytes: u64,
}

impl Client {
    /// `certificates` are those of the authorities that servers are believed by, in PEM.
    pub(super) fn new(servers: Vec<Server>, limits: Limits, certificates: &[u8]) -> Self {
        let roots = parse_pem(certificates).filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        });
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::new_with_certs(&roots.collect::<Vec<_>>()))
            .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .max_redirects(MOST_REDIRECTS)
            .timeout_connect(Some(CONNECT.min(limits.request)))
            .user_agent(concat!("spanflame/", env!("CARGO_PKG_VERSION")))
            .build();
        let room_bytes = limits.total_bytes;
        let servers = servers.into_iter().map(|server| (server, true)).collect();
        Self { agent: config.new_agent(), servers, limits, room_bytes }
    }

    /// Fetches files to the cache, one after the other, for as long as somebody listens.
    pub(super) fn fetch_all(
        &mut self,
        build_ids: Vec<Vec<u8>>,
        cache: &DebugCache,
        deadline: Instant,
        results: &mpsc::Sender<Fetched>,
    ) {
        for build_id in build_ids {
            let given_up = || results.is_closed();
            let fetched = self.fetch(build_id, cache, deadline, &given_up);
            if results.blocking_send(fetched).is_err() {
                return;
            }
        }
    }

    fn fetch(
        &mut self,
        build_id: Vec<u8>,
        cache: &DebugCache,
        deadline: Instant,
        given_up: &dyn Fn() -> bool,
    ) -> Fetched {
        let mut failures = Vec::new();
        let Self { agent, servers, limits, room_bytes } = self;
        for (server, is_well) in servers {
            let left = deadline.saturating_duration_since(Instant::now());
            let failure = if !*is_well {
                "it failed before".to_owned()
            } else if left.is_zero() {
                "no time was left for it".to_owned()
            } else {
                let most_bytes = limits.file_bytes.min(*room_bytes);
                let asked = ask(agent, server, &build_id, limits.request.min(left));
                let kept = asked.and_then(|response| {
                    let mut left_bytes = most_bytes;
                    let kept = cache.keep(&build_id, |file| copy(response, file, &mut left_bytes, given_up));
                    *room_bytes -= most_bytes - left_bytes;
                    kept.unwrap_or_else(|error| Err(Failure::File(format!("it can't be kept: {error}"))))
                });
                match kept {
                    Ok(()) => return Fetched { build_id, sent_by: Some(server.shown.clone()), failures },
                    Err(Failure::Absent) => continue,
                    Err(Failure::File(why)) => why,
                    Err(Failure::Server(why)) => {
                        *is_well = false;
                        why
                    }
                }
            };
            failures.push((server.shown.clone(), failure));
        }
        if failures.is_empty() {
            cache.set_absent(&build_id);
        }
        Fetched { build_id, sent_by: None, failures }
    }
}

/// The answer of a server that has the file.
fn ask(agent: &Agent, server: &Server, build_id: &[u8], limit: Duration) -> Result<Response<Body>, Failure> {
    let url = format!("{}/buildid/{}/debuginfo", server.url, hex(build_id));
    // Who named a server by https does not want another one's word without it.
    let secure = server.url.starts_with("https:");
    let request = agent.get(url).config().https_only(secure).timeout_global(Some(limit)).build();
    let response = request.call().map_err(|error| Failure::Server(why(&error)))?;
    match response.status() {
        StatusCode::OK => Ok(response),
        StatusCode::NOT_FOUND => Err(Failure::Absent),
        status => Err(Failure::File(format!("HTTP status {}", status.as_u16()))),
    }
}

/// Writes the body of an answer to a file.
fn copy(
    response: Response<Body>,
    file: &mut impl io::Write,
    left_bytes: &mut u64,
    given_up: &dyn Fn() -> bool,
) -> Result<(), Failure> {
    let most_bytes = *left_bytes;
    let too_large = || Failure::File(format!("it is larger than the {most_bytes} bytes that may be fetched"));
    let length = response.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: u64| length > most_bytes) {
        return Err(too_large());
    }
    let mut body = response.into_body().into_reader();
    let mut buffer = vec![0; 64 << 10];
    loop {
        if given_up() {
            return Err(Failure::Server("nobody waits for it any more".to_owned()));
        }
        let length = match body.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Failure::Server(why(&Error::from(error)))),
        };
        *left_bytes = left_bytes.checked_sub(length as u64).ok_or_else(too_large)?;
        let written = file.write_all(&buffer[..length]);
        written.map_err(|error| Failure::File(format!("it can't be kept: {error}")))?;
    }
}

/// What went wrong, without any URL: they may hold passwords.
fn why(error: &Error) -> String {
    match error {
        Error::Timeout(_) => "it took too long".to_owned(),
        Error::HostNotFound => "there is no such host".to_owned(),
        Error::ConnectionFailed => "no connection".to_owned(),
        Error::TooManyRedirects => format!("more than {MOST_REDIRECTS} redirects"),
        Error::RequireHttpsOnly(_) => "a redirect to where there is no https".to_owned(),
        Error::Io(error) => error.to_string(),
        Error::Protocol(error) => format!("no proper HTTP: {error}"),
        Error::Rustls(error) => format!("no https: {error}"),
        Error::Tls(why) => format!("no https: {why}"),
        _ => "its answer can't be used".to_owned(),
    }
}
