//! What the environment says about debuginfod servers, by the names that elfutils' client has for it
//! (debuginfod-client-config(7)).

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use ureq::http::Uri;

use super::{DebuginfodError, MOST_FILE_BYTES, MOST_TOTAL_BYTES};

/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(30);

/// How long all requests of a recording may take.
const TOTAL: Duration = Duration::from_secs(60);

/// Where distributions have the certificates of authorities, in one file: Debian, Fedora, Alpine.
const CERTIFICATES: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// A server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    /// Without a slash at its end. It may hold a password.
    pub(super) url: String,
    /// The same without user and password, for people.
    pub(super) shown: String,
}

/// What a recording may fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) request: Duration,
    pub(super) total: Duration,
    pub(super) file_bytes: u64,
    pub(super) total_bytes: u64,
}

/// All that the environment says.
pub(super) struct Settings {
    pub(super) servers: Vec<Server>,
    pub(super) limits: Limits,
    pub(super) cache: PathBuf,
    /// In PEM; empty when no server needs them.
    pub(super) certificates: Vec<u8>,
}

/// A variable of the environment.
pub(super) type Variable<'a> = &'a dyn Fn(&str) -> Option<OsString>;

impl Settings {
    pub(super) fn new(variable: Variable<'_>, is_root: bool) -> Result<Self, DebuginfodError> {
        let servers = servers(&variable("DEBUGINFOD_URLS").unwrap_or_default().to_string_lossy())?;
        let secure = servers.iter().any(|server| server.url.starts_with("https:"));
        let certificates = if secure { certificates(variable)? } else { Vec::new() };
        let cache = cache(variable, is_root).ok_or(DebuginfodError::NoFolder)?;
        Ok(Self { servers, limits: limits(variable), cache, certificates })
    }
}

fn servers(urls: &str) -> Result<Vec<Server>, DebuginfodError> {
    // `ima:...` says which signatures elfutils' client wants; here no file is believed that a server sent.
    let words = urls.split_ascii_whitespace().enumerate().filter(|(_index, word)| !word.starts_with("ima:"));
    let servers: Vec<Server> =
        words.map(|(index, url)| server(url).ok_or(DebuginfodError::BadUrl(index + 1))).collect::<Result<_, _>>()?;
    if servers.is_empty() { Err(DebuginfodError::NoServer) } else { Ok(servers) }
}

fn server(url: &str) -> Option<Server> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str().filter(|scheme| matches!(*scheme, "http" | "https"))?;
    let authority = uri.authority()?.as_str();
    let host = authority.rsplit_once('@').map_or(authority, |(_user, host)| host);
    let path = uri.path().trim_end_matches('/');
    let usable = !host.is_empty() && uri.query().is_none();
    usable.then(|| Server { url: format!("{scheme}://{authority}{path}"), shown: format!("{scheme}://{host}{path}") })
}

/// Variables only lower the bounds.
fn limits(variable: Variable<'_>) -> Limits {
    let number = |name| variable(name).and_then(|text| text.to_str()?.trim().parse::<u64>().ok()).filter(|n| *n > 0);
    let seconds = |name, most: Duration| number(name).map_or(most, |seconds| Duration::from_secs(seconds).min(most));
    let file_bytes = number("DEBUGINFOD_MAXSIZE").map_or(MOST_FILE_BYTES, |bytes| bytes.min(MOST_FILE_BYTES));
    Limits {
        request: seconds("DEBUGINFOD_TIMEOUT", REQUEST),
        total: seconds("DEBUGINFOD_MAXTIME", TOTAL),
        file_bytes,
        total_bytes: MOST_TOTAL_BYTES,
    }
}

/// A folder of our own, for the files there have names of ours.
fn cache(variable: Variable<'_>, is_root: bool) -> Option<PathBuf> {
    let path = |name| variable(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    if let Some(folder) = path("DEBUGINFOD_CACHE_PATH") {
        return Some(folder.join("spanflame"));
    }
    if is_root {
        return Some(PathBuf::from("/var/cache/spanflame/debuginfod"));
    }
    let folder = path("XDG_CACHE_HOME").or_else(|| path("HOME").map(|home| home.join(".cache")))?;
    Some(folder.join("spanflame/debuginfod"))
}

fn certificates(variable: Variable<'_>) -> Result<Vec<u8>, DebuginfodError> {
    let named = variable("SSL_CERT_FILE").filter(|path| !path.is_empty()).map(PathBuf::from);
    let usual = CERTIFICATES.iter().map(PathBuf::from).filter(|_usual| named.is_none());
    let found = named.iter().cloned().chain(usual).find_map(|path| fs::read(path).ok());
    found.filter(|bytes| !bytes.is_empty()).ok_or(DebuginfodError::NoCertificates)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)], is_root: bool) -> Result<Settings, DebuginfodError> {
        let find = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        Settings::new(&find, is_root)
    }

    #[test]
    fn servers_are_known_by_their_urls_and_shown_without_passwords() {
        let found = servers("ima:enforcing http://a:8002/ http://me:secret@b.example/debug/ ima:ignore").unwrap();
        let seen: Vec<_> = found.iter().map(|server| (server.url.as_str(), server.shown.as_str())).collect();
        assert_eq!(
            seen,
            [("http://a:8002", "http://a:8002"), ("http://me:secret@b.example/debug", "http://b.example/debug")]
        );
        for none in ["", " ", "ima:ignore"] {
            assert!(matches!(servers(none), Err(DebuginfodError::NoServer)), "{none:?}");
        }
        for bad in ["file:///srv", "http://", "a", "http://a?token=secret", "ftp://a", "http://a@"] {
            let error = servers(&format!("http://a {bad}")).map(drop).unwrap_err();
            assert!(matches!(error, DebuginfodError::BadUrl(2)), "{bad}: {error}");
            assert!(!error.to_string().contains("secret"));
        }
    }

    #[test]
    fn bounds_are_only_lowered() {
        let urls = ("DEBUGINFOD_URLS", "http://a");
        let usual = settings(&[urls], true).unwrap().limits;
        assert_eq!(
            usual,
            Limits { request: REQUEST, total: TOTAL, file_bytes: MOST_FILE_BYTES, total_bytes: MOST_TOTAL_BYTES }
        );
        let high =
            [urls, ("DEBUGINFOD_TIMEOUT", "999"), ("DEBUGINFOD_MAXSIZE", "99999999999"), ("DEBUGINFOD_MAXTIME", "0")];
        assert_eq!(settings(&high, true).unwrap().limits, usual);
        let low = [urls, ("DEBUGINFOD_TIMEOUT", "2"), ("DEBUGINFOD_MAXSIZE", "1000"), ("DEBUGINFOD_MAXTIME", "3")];
        let low = settings(&low, true).unwrap().limits;
        assert_eq!((low.request.as_secs(), low.total.as_secs(), low.file_bytes), (2, 3, 1000));
    }

    #[test]
    fn files_are_kept_where_the_user_wants_them() {
        let home = ("HOME", "/home/me");
        let folder = |variables: &[(&str, &str)], is_root| {
            let all = [&[("DEBUGINFOD_URLS", "http://a")], variables].concat();
            settings(&all, is_root).map(|settings| settings.cache.display().to_string()).ok()
        };
        assert_eq!(folder(&[home], true).unwrap(), "/var/cache/spanflame/debuginfod");
        assert_eq!(folder(&[home], false).unwrap(), "/home/me/.cache/spanflame/debuginfod");
        assert_eq!(folder(&[home, ("XDG_CACHE_HOME", "/c")], false).unwrap(), "/c/spanflame/debuginfod");
        assert_eq!(folder(&[home, ("DEBUGINFOD_CACHE_PATH", "/d")], true).unwrap(), "/d/spanflame");
        assert_eq!(folder(&[], false), None);
    }

    #[test]
    fn https_needs_certificates() {
        let none = [("DEBUGINFOD_URLS", "https://a"), ("SSL_CERT_FILE", "/nowhere")];
        assert!(matches!(settings(&none, true), Err(DebuginfodError::NoCertificates)));
    }
}
