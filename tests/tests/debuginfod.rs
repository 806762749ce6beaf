//! Debug information from servers, good and bad ones.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "what goes wrong fails the test")]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use spanflame_tests::system::{output, wait_for};
use spanflame_tests::{Ended, Lab, Record, lab};
use tempfile::TempDir;

/// A server on this host. It answers as long as the test runs.
struct Server {
    url: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// `answer` gets the path that was asked for. A connection is closed when it returns.
    fn new(answer: impl Fn(&str, &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (Arc::clone(&requests), Arc::new(answer));
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                std::thread::spawn(move || {
                    let lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                    let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
                    let path = head.first().and_then(|line| line.split(' ').nth(1)).unwrap_or_default().to_owned();
                    seen.lock().unwrap().push(head.join("\n"));
                    // The client may have gone.
                    let _closed = answer(&path, &mut stream);
                });
            }
        });
        Self { url, requests }
    }

    /// One that has this file, and no other.
    fn of(program: &Stripped, bytes: Vec<u8>) -> Self {
        let path = program.path_asked_for();
        Self::new(move |asked, stream| {
            // Behind a prefix, too, and by one redirect.
            match asked.strip_prefix("/prefix") {
                Some(rest) => write!(
                    stream,
                    "HTTP/1.1 302 Found\r\nLocation: {rest}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                ),
                None if asked == path => send(stream, &bytes),
                None => refuse(stream, "404 Not Found"),
            }
        })
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

/// An authority of nobody's, and a server with its certificate.
struct Secure {
    /// The authority's certificate, in PEM.
    authority: PathBuf,
    url: String,
}

impl Secure {
    /// It has this file under this path, and no other.
    fn new(folder: &Path, path: String, bytes: Vec<u8>) -> Self {
        let file = |name: &str| folder.join(name);
        let openssl = |arguments: &str| {
            output(Command::new("openssl").args(arguments.split(' ')).current_dir(folder));
        };
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        openssl(&format!("req -x509 {key} -days 2 -subj /CN=company -keyout ca.key -out ca.pem"));
        openssl(&format!("req {key} -subj /CN=server -keyout server.key -out server.csr"));
        fs::write(file("names"), "subjectAltName=IP:127.0.0.1\n").unwrap();
        let sign = "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names";
        openssl(&format!("{sign} -out server.pem"));
        let certificate = CertificateDer::from_pem_file(file("server.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(file("server.key")).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let config = Arc::new(config.with_single_cert(vec![certificate], key).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
                let mut stream = BufReader::new(StreamOwned::new(connection, stream));
                let mut asked = String::new();
                // Who does not trust it goes.
                if stream.read_line(&mut asked).is_err() {
                    continue;
                }
                let mut line = String::new();
                while stream.read_line(&mut line).is_ok_and(|length| length > 2) {
                    line.clear();
                }
                let found = asked.split(' ').nth(1) == Some(&path);
                let _closed = if found { send(stream.get_mut(), &bytes) } else { refuse(stream.get_mut(), "404 No") };
                stream.get_mut().conn.send_close_notify();
                let _closed = stream.get_mut().flush();
            }
        });
        Self { authority: file("ca.pem"), url }
    }
}

fn send(stream: &mut impl std::io::Write, bytes: &[u8]) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", bytes.len())?;
    stream.write_all(bytes)
}

fn refuse(stream: &mut impl std::io::Write, status: &str) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}

/// A program whose debug information is elsewhere, and a cache.
struct Stripped {
    folder: TempDir,
    program: PathBuf,
    build_id: String,
}

impl Stripped {
    fn new(lab: &Lab) -> Self {
        // Not in the usual place for such: others may write there.
        let folder = tempfile::tempdir_in("/var/cache").unwrap();
        let program = lab.copy("inlined", folder.path(), "stripped");
        let debug = folder.path().join("separate");
        output(Command::new("objcopy").arg("--only-keep-debug").args([&program, &debug]));
        output(Command::new("strip").arg(&program));
        let notes = output(Command::new("readelf").arg("-n").arg(&program));
        let build_id = notes.lines().find_map(|line| line.trim().strip_prefix("Build ID: ")).unwrap().to_owned();
        Self { folder, program, build_id }
    }

    fn debug_file(&self) -> Vec<u8> {
        fs::read(self.folder.path().join("separate")).unwrap()
    }

    fn path_asked_for(&self) -> String {
        format!("/buildid/{}/debuginfo", self.build_id)
    }

    fn setup(&self, lab: &Lab, urls: &str) -> Record {
        let record = lab.record(&["-F", "499", "--debuginfod"]).env("DEBUGINFOD_URLS", urls);
        record.env("DEBUGINFOD_CACHE_PATH", self.folder.path())
    }

    fn record(&self, lab: &Lab, urls: &str) -> Ended {
        self.finish(self.setup(lab, urls))
    }

    fn finish(&self, record: Record) -> Ended {
        let ended = record.of(&self.program, &["500"]).end();
        assert!(ended.status.success(), "{ended:?}");
        ended
    }

    fn cached(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.folder.path().join("spanflame")).unwrap();
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.extension() != Some("absent".as_ref())).collect()
    }
}

/// Whether lines of the program's source are in the profile, that is as good as any.
fn has_source(ended: &Ended) -> bool {
    let pprof = ended.profile().pprof;
    let mut files = pprof.0.function.iter().map(|function| pprof.text(function.filename));
    files.any(|file| file.ends_with("/inlined.c"))
}

/// Fetched once; then the file is there. Only the server sees the password.
#[test]
fn debug_information_is_fetched_and_kept() {
    let Some(lab) = lab() else { return };
    let program = Stripped::new(&lab);
    let server = Server::of(&program, program.debug_file());
    let urls = format!("ima:ignore {}/prefix/", server.url.replace("//", "//me:secret@"));
    for times in [1, 1] {
        let ended = program.record(&lab, &urls);
        assert!(has_source(&ended), "{}", ended.stderr);
        assert_eq!(ended.profile().figure("debuginfod_failed"), 0, "{}", ended.stderr);
        assert!(!ended.stderr.contains("secret"), "{}", ended.stderr);
        let wanted = format!("GET /prefix{} ", program.path_asked_for());
        let asked = server.requests().iter().filter(|head| head.starts_with(&wanted)).count();
        assert_eq!(asked, times, "{:?}", server.requests());
    }
    let sent = server.requests();
    // RFC 7617: base64 of `me:secret`.
    assert!(sent[0].to_lowercase().contains("authorization: basic ") && sent[0].contains("bWU6c2VjcmV0"), "{sent:?}");
}

/// By https, from a server that a company's own authority vouches for: only who knows that believes it.
#[test]
fn servers_with_certificates_of_a_company() {
    let Some(lab) = lab() else { return };
    let program = Stripped::new(&lab);
    let [server, other] = ["server", "other"].map(|name| {
        let folder = program.folder.path().join(name);
        fs::create_dir(&folder).unwrap();
        Secure::new(&folder, program.path_asked_for(), program.debug_file())
    });
    for (authority, is_known) in [(&other.authority, false), (&server.authority, true)] {
        let ended = program.finish(program.setup(&lab, &server.url).env("SSL_CERT_FILE", authority));
        assert_eq!(
            (has_source(&ended), ended.stderr.contains("invalid peer certificate")),
            (is_known, !is_known),
            "{ended:?}"
        );
    }
}

/// The debug file of the program, and then what dwz moved out of that.
#[test]
fn what_dwz_moved_is_fetched_too() {
    let Some(lab) = lab() else { return };
    let mut program = Stripped::new(&lab);
    let folder = program.folder.path().to_owned();
    let build_id = |file: &Path| {
        let notes = output(Command::new("readelf").arg("-n").arg(file));
        notes.lines().find_map(|line| line.trim().strip_prefix("Build ID: ")).unwrap().to_owned()
    };
    let [first, second] = ["first", "second"].map(|name| lab.copy("inlined", &folder, name));
    let shared = folder.join("shared");
    output(Command::new("dwz").arg("-m").arg(&shared).args(["-M", "/nowhere/shared"]).args([&first, &second]));
    let separate = folder.join("separate");
    output(Command::new("objcopy").arg("--only-keep-debug").args([&first, &separate]));
    output(Command::new("strip").arg(&first));
    program.program = first;
    let path = format!("/buildid/{}/debuginfo", build_id(&shared));
    let files = [(program.path_asked_for(), program.debug_file()), (path, fs::read(&shared).unwrap())];
    let server = Server::new(move |asked, stream| match files.iter().find(|(path, _bytes)| path == asked) {
        Some((_path, bytes)) => send(stream, bytes),
        None => refuse(stream, "404 Not Found"),
    });
    let ended = program.record(&lab, &server.url);
    assert!(has_source(&ended), "{}", ended.stderr);
    let asked = format!("GET /buildid/{}/", build_id(&shared));
    assert!(server.requests().iter().any(|head| head.starts_with(&asked)), "{:?}", server.requests());
}

#[test]
fn what_no_server_has_is_not_asked_for_again_soon() {
    let Some(lab) = lab() else { return };
    let program = Stripped::new(&lab);
    let server = Server::new(|_path, stream| refuse(stream, "404 Not Found"));
    let mut asked = 0;
    for is_first in [true, false] {
        let ended = program.record(&lab, &server.url);
        let note = format!("no debuginfod server has the debug information of {}", program.program.display());
        assert!(ended.stderr.contains(&note), "{}", ended.stderr);
        assert_eq!((has_source(&ended), ended.profile().figure("debuginfod_failed")), (false, 0));
        assert!(is_first || server.requests().len() == asked, "{:?}", server.requests());
        asked = server.requests().len();
        assert!(asked > 0);
    }
}

/// All that a server can do wrong is told of it, bounded, and left for the next server to do better.
#[test]
fn servers_that_fail() {
    let Some(lab) = lab() else { return };
    let program = Stripped::new(&lab);
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let file = program.debug_file();
    let half = file[..file.len() / 2].to_vec();
    let bad = [
        (Server::new(|_path, stream| refuse(stream, "503 Busy")), "HTTP status 503"),
        (
            Server::new(|_path, stream| write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n")),
            "larger than the 1000000 bytes",
        ),
        (
            Server::new(|_path, stream| {
                write!(stream, "HTTP/1.1 200 OK\r\n\r\n")?;
                loop {
                    stream.write_all(&[0; 4096])?;
                }
            }),
            "larger than the 1000000 bytes",
        ),
        (
            Server::new(move |_path, stream| {
                write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", half.len() * 2)?;
                stream.write_all(&half)
            }),
            "",
        ),
        (
            Server::new(|path, stream| {
                write!(stream, "HTTP/1.1 302 Found\r\nLocation: {path}\r\nContent-Length: 0\r\n\r\n")
            }),
            "more than 5 redirects",
        ),
        (Server::new(|_path, stream| write!(stream, "SSH-2.0-OpenSSH\r\n\r\n")), "no proper HTTP"),
        (
            // It sends nothing.
            Server::new(|_path, stream| {
                let _until_it_gives_up = std::io::copy(stream, &mut std::io::sink());
                Ok(())
            }),
            "too long",
        ),
        (
            // It sends a little, for ever.
            Server::new(|_path, stream| {
                write!(stream, "HTTP/1.1 200 OK\r\n\r\n")?;
                loop {
                    stream.write_all(b"a")?;
                    std::thread::sleep(Duration::from_millis(50));
                }
            }),
            "too long",
        ),
        (Server { url: format!("http://{nobody}"), requests: Arc::default() }, "refused"),
    ];
    let urls: Vec<&str> = bad.iter().map(|(server, _why)| server.url.as_str()).collect();
    let set_up =
        |urls: &str| program.setup(&lab, urls).env("DEBUGINFOD_TIMEOUT", "1").env("DEBUGINFOD_MAXSIZE", "1000000");
    let ended = program.finish(set_up(&urls.join(" ")));
    for (server, why) in &bad {
        let note = format!("{} did not give the debug information of {}", server.url, program.program.display());
        let lines: Vec<&str> = ended.stderr.lines().filter(|line| line.contains(&note)).collect();
        assert!(
            matches!(lines[..], [line] if line.contains(why) && line.contains(&program.build_id)),
            "{why}: {ended:?}"
        );
    }
    assert!(!has_source(&ended) && ended.profile().figure("debuginfod_failed") >= 1, "{}", ended.stderr);
    assert_eq!(program.cached(), Vec::<PathBuf>::new());
    let good = Server::of(&program, file);
    let ended = program.finish(set_up(&format!("{} {}", urls.join(" "), good.url)));
    assert!(has_source(&ended), "{}", ended.stderr);
}

/// What has another build id or none is not used, and not kept.
#[test]
fn other_files_than_the_wanted_one() {
    let Some(lab) = lab() else { return };
    let program = Stripped::new(&lab);
    for wrong in [b"<html>Sign in</html>".to_vec(), fs::read(lab.workload("chain12")).unwrap(), Vec::new()] {
        let server = Server::of(&program, wrong);
        let ended = program.record(&lab, &server.url);
        let note = format!("(build id {}): it sent something else", program.build_id);
        assert!(ended.stderr.contains(&note) && ended.stderr.contains(&server.url), "{}", ended.stderr);
        assert!(!has_source(&ended) && ended.profile().figure("debuginfod_failed") == 1, "{}", ended.stderr);
        assert_eq!(program.cached(), Vec::<PathBuf>::new());
        let absent = program.folder.path().join("spanflame").join(format!("{}.absent", program.build_id));
        fs::remove_file(absent).unwrap();
    }
}

/// Ctrl-C gives up what a server has not sent yet, and nothing else.
#[test]
fn nobody_has_to_wait_for_a_server() {
    let Some(lab) = lab() else { return };
    let program = Stripped::new(&lab);
    let server = Server::new(|_path, stream| {
        let _until_it_gives_up = std::io::copy(stream, &mut std::io::sink());
        Ok(())
    });
    let running = program.setup(&lab, &server.url).of(&program.program, &["500"]);
    wait_for("a request", || !server.requests().is_empty());
    let since = Instant::now();
    running.signal(Signal::INT);
    let ended = running.end();
    assert!(since.elapsed() < Duration::from_secs(20), "less than a request may take: {ended:?}");
    assert!(ended.status.success() && ended.stderr.contains("interrupted: "), "{ended:?}");
    assert!(!has_source(&ended));
}

/// Before anything is sampled.
#[test]
fn without_servers_or_a_safe_folder_nothing_begins() {
    let Some(lab) = lab() else { return };
    for (urls, cache, word) in [
        ("", "/var/cache", "DEBUGINFOD_URLS"),
        ("http://localhost:1 secret", "/var/cache", "word 2 of DEBUGINFOD_URLS"),
        ("http://localhost:1", "/tmp", "/tmp: others may write there"),
    ] {
        let record = lab.record(&["--debuginfod"]).env("DEBUGINFOD_URLS", urls).env("DEBUGINFOD_CACHE_PATH", cache);
        let ended = record.of(Path::new("/bin/echo"), &["it ran"]).end();
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.stderr.contains(word) && !ended.stderr.contains("secret"), "{}", ended.stderr);
        assert!(!ended.stdout.contains("it ran") && ended.files().is_empty(), "{ended:?}");
    }
}
