//! Debug information from debuginfod servers, for who asks for it: at the end of a recording, the files of
//! executables in the profile of which no source line is known, the most sampled ones first.
//!
//! Servers are told build ids of what runs here, and nothing else. What they send goes to a folder that nobody
//! else can change, from where the worker for symbols gets it as any other debug file: it believes only
//! what has the right build id. A recording never fails for it.

mod cache;
mod client;
mod settings;

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use profiler_common::counter::Counter;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use self::client::{Client, Fetched, FromServer};
use self::settings::Settings;
use crate::aggregate::Aggregator;
use crate::cache_folder::FolderError;
use crate::counts::{Counts, quoted};
use crate::debug_files::{BUILD_ID_BYTES, DebugFile, Place, hex};
use crate::tracker::Executable;
use crate::worker::{FileKey, MAX_ADDRESSES, Worker};

pub use self::cache::DebugCache;

/// Bytes of one file, at most. Debian's for libLLVM, one of the largest, has 200 MiB.
const MOST_FILE_BYTES: u64 = 512 << 20;

/// Bytes that one recording fetches, at most, and that are kept.
const MOST_TOTAL_BYTES: u64 = 1 << 30;

/// Files that one recording asks for, at most.
const MOST_FILES: usize = 64;

/// Executables that are kept open to be asked about again, at most.
const MOST_OPEN: usize = 256;

/// How much later than it should a request may end.
const LATE: Duration = Duration::from_secs(1);

/// Why servers can't be asked.
#[derive(Debug, thiserror::Error)]
pub enum DebuginfodError {
    /// None is named.
    #[error(
        "--debuginfod asks the servers in DEBUGINFOD_URLS, and that is not set. Set it: export \
         DEBUGINFOD_URLS=https://debuginfod.elfutils.org/ (sudo keeps it with --preserve-env=DEBUGINFOD_URLS)"
    )]
    NoServer,
    /// This is none. It is not shown: it may hold a password.
    #[error("word {0} of DEBUGINFOD_URLS is no URL like https://HOST/PATH or http://HOST:PORT. Correct it")]
    BadUrl(usize),
    /// There are no certificates.
    #[error("no certificates to know https servers by. Install ca-certificates, or name a file with SSL_CERT_FILE")]
    NoCertificates,
    /// There is no home.
    #[error("no folder to keep debug information in. Name one that is yours alone with DEBUGINFOD_CACHE_PATH")]
    NoFolder,
    /// The folder can't be used.
    #[error("{0}. Name another folder for debug information with DEBUGINFOD_CACHE_PATH")]
    Folder(#[from] FolderError),
}

/// The servers, what was fetched from them, and what is to be.
pub(crate) struct Debuginfod {
    client: Arc<Mutex<Client>>,
    cache: Arc<DebugCache>,
    /// How long all requests may take.
    limit: Duration,
    deadline: Option<Instant>,
    lacking: HashMap<FileKey, Lacking>,
    /// Build ids, each asked for once.
    asked: HashSet<Vec<u8>>,
    /// Who sent what.
    sent: HashMap<Vec<u8>, FromServer>,
    /// Servers that a note complains of.
    noted: HashSet<FromServer>,
    /// The first path of an executable of which no server knows, and how many there are.
    absent: Option<(String, u64)>,
}

/// An executable whose debug information was looked for in vain.
struct Lacking {
    path: String,
    /// Kept open: whoever maps it may have ended when it is asked about again.
    file: Arc<OwnedFd>,
    place: Place,
    files: Vec<DebugFile>,
    /// The build ids that were fetched since, once the worker was asked again.
    fetched: Vec<Vec<u8>>,
}

impl Debuginfod {
    /// The servers that the environment names.
    ///
    /// # Errors
    /// When it names none, or what they send can't be kept.
    pub(crate) fn from_environment() -> Result<Self, DebuginfodError> {
        let is_root = rustix::process::geteuid().is_root();
        let settings = Settings::new(&|name| std::env::var_os(name), is_root)?;
        let cache = Arc::new(DebugCache::open(&settings.cache)?);
        let client = Client::new(settings.servers, settings.limits, &settings.certificates);
        Ok(Self {
            client: Arc::new(Mutex::new(client)),
            cache,
            limit: settings.limits.total,
            deadline: None,
            lacking: HashMap::new(),
            asked: HashSet::new(),
            sent: HashMap::new(),
            noted: HashSet::new(),
            absent: None,
        })
    }

    /// Where the files are.
    pub(crate) fn cache(&self) -> Arc<DebugCache> {
        Arc::clone(&self.cache)
    }

    /// The worker found no such files when it named functions of this executable.
    pub(crate) fn lacks(&mut self, key: FileKey, executable: Option<&Executable>, files: Vec<DebugFile>) {
        if let Some(lacking) = self.lacking.get_mut(&key) {
            lacking.files.extend(files);
        } else if let Some(executable) = executable
            && let (false, Some(file)) = (files.is_empty(), &executable.file)
            // What has no path is the kernel's own, or was made at run time.
            && executable.path.starts_with('/')
            && self.lacking.len() < MOST_OPEN
        {
            let (path, place) = (executable.path.clone(), executable.place());
            let lacking = Lacking { path, file: Arc::clone(file), place, files, fetched: Vec::new() };
            self.lacking.insert(key, lacking);
        }
    }

    /// Fetches what may tell more, and says about which executables to ask again.
    pub(crate) async fn fetch(&mut self, aggregator: &Aggregator, counts: &mut Counts) -> Vec<FileKey> {
        let wanted = self.take_wanted(aggregator);
        let deadline = *self.deadline.get_or_insert_with(|| Instant::now() + self.limit);
        let mut left: Vec<Vec<u8>> = Vec::new();
        for (build_id, key) in &wanted {
            if self.cache.is_absent(build_id) {
                self.is_absent(*key);
            } else {
                left.push(build_id.clone());
            }
        }
        let of_files: HashMap<Vec<u8>, FileKey> = wanted.into_iter().collect();
        let mut results = self.fetch_all(left.clone(), deadline);
        let mut to_ask = Vec::new();
        while let Ok(Some(Fetched { build_id, sent_by, failures })) = timeout_at(deadline + LATE, results.recv()).await
        {
            left.retain(|other| *other != build_id);
            let Some(key) = of_files.get(&build_id).copied() else { continue };
            for (server, why) in &failures {
                self.complain(server, (key, &build_id), why, counts);
            }
            match sent_by {
                Some(server) => {
                    to_ask.push(key);
                    self.lacking.entry(key).and_modify(|lacking| lacking.fetched.push(build_id.clone()));
                    self.sent.insert(build_id, server);
                }
                None if failures.is_empty() => self.is_absent(key),
                None => counts.add(Counter::DebuginfodFailed, 1),
            }
        }
        counts.add(Counter::DebuginfodFailed, left.len() as u64);
        if !left.is_empty() {
            counts.note(format!("debuginfod servers did not answer within {} s", self.limit.as_secs()));
        }
        to_ask.sort_unstable();
        to_ask.dedup();
        to_ask
    }

    /// Asks for the functions of executables again; a worker must have no memory of them.
    pub(crate) fn request(&mut self, keys: &[FileKey], aggregator: &Aggregator, worker: &mut Worker) {
        let addresses = aggregator.addresses_of(keys);
        for (key, addresses) in addresses {
            let Some(lacking) = self.lacking.get_mut(&key) else { continue };
            lacking.files.clear();
            for some in addresses.chunks(MAX_ADDRESSES) {
                // Its queue is far from full.
                let _asked = worker.request_symbols(key, &lacking.file, lacking.place.clone(), some);
            }
        }
    }

    /// Whether the worker is asked about this executable again.
    pub(crate) fn is_second(&self, key: FileKey) -> bool {
        self.lacking.get(&key).is_some_and(|lacking| !lacking.fetched.is_empty())
    }

    /// The worker did not survive what was fetched for this executable.
    pub(crate) fn failed(&mut self, key: FileKey, why: &str, counts: &mut Counts) {
        let fetched = self.lacking.get_mut(&key).map(|lacking| std::mem::take(&mut lacking.fetched));
        for build_id in fetched.unwrap_or_default() {
            self.refuse(key, &build_id, why, counts);
        }
    }

    /// Removes what the worker did not want to have, once it has answered.
    pub(crate) fn check(&mut self, keys: &[FileKey], counts: &mut Counts) {
        for key in keys {
            let Some(lacking) = self.lacking.get(key) else { continue };
            let refused = |id: &&Vec<u8>| lacking.files.iter().any(|file| file.build_id() == Some(id.as_slice()));
            let refused: Vec<Vec<u8>> = lacking.fetched.iter().filter(refused).cloned().collect();
            for build_id in refused {
                self.refuse(*key, &build_id, "it sent something else", counts);
            }
        }
    }

    /// Says what there is to say at the end.
    pub(crate) fn conclude(&self, counts: &mut Counts) {
        if let Some((path, number)) = &self.absent {
            let more = if *number > 1 { format!(" and {} more files", number - 1) } else { String::new() };
            counts.note(format!("no debuginfod server has the debug information of {}{more}", quoted(path)));
        }
    }

    /// What to ask for, with the executable that it is for.
    fn take_wanted(&mut self, aggregator: &Aggregator) -> Vec<(Vec<u8>, FileKey)> {
        let samples = aggregator.samples_by_file();
        let mut keys: Vec<FileKey> = self.lacking.keys().copied().collect();
        keys.sort_unstable_by_key(|key| (std::cmp::Reverse(samples.get(key).copied()), *key));
        let mut wanted = Vec::new();
        for key in keys {
            let Some(lacking) = self.lacking.get(&key).filter(|_| samples.contains_key(&key)) else { continue };
            let has_source = aggregator.has_source(key);
            // What dwz moved out of debug information belongs to some that is there.
            let is_useful = |file: &&DebugFile| !has_source || matches!(file, DebugFile::Supplement { .. });
            for id in lacking.files.iter().filter(is_useful).filter_map(DebugFile::build_id) {
                if self.asked.len() < MOST_FILES && BUILD_ID_BYTES.contains(&id.len()) && self.asked.insert(id.to_vec())
                {
                    wanted.push((id.to_vec(), key));
                }
            }
        }
        wanted
    }

    /// Has a thread fetch files. It ends soon after nobody wants its results any more.
    fn fetch_all(&self, build_ids: Vec<Vec<u8>>, deadline: Instant) -> mpsc::Receiver<Fetched> {
        let (sender, receiver) = mpsc::channel(MOST_FILES);
        if !build_ids.is_empty() {
            let (client, cache) = (Arc::clone(&self.client), Arc::clone(&self.cache));
            let work = move || {
                let mut client = client.lock().unwrap_or_else(PoisonError::into_inner);
                client.fetch_all(build_ids, &cache, deadline.into_std(), &sender);
            };
            // Without a thread there are no results, and that is counted.
            let _thread = std::thread::Builder::new().name("debuginfod".to_owned()).spawn(work);
        }
        receiver
    }

    fn is_absent(&mut self, key: FileKey) {
        let path = self.lacking.get(&key).map(|lacking| lacking.path.clone()).unwrap_or_default();
        self.absent.get_or_insert((path, 0)).1 += 1;
    }

    fn refuse(&mut self, key: FileKey, build_id: &[u8], why: &str, counts: &mut Counts) {
        self.cache.set_absent(build_id);
        counts.add(Counter::DebuginfodFailed, 1);
        if let Some(server) = self.sent.remove(build_id) {
            self.complain(&server, (key, build_id), why, counts);
        }
    }

    /// One note for each server.
    fn complain(&mut self, server: &str, (key, build_id): (FileKey, &[u8]), why: &str, counts: &mut Counts) {
        if self.noted.insert(server.to_owned()) {
            let path = self.lacking.get(&key).map_or("", |lacking| lacking.path.as_str());
            counts.note(format!(
                "the debuginfod server {server} did not give the debug information of {} (build id {}): {why}",
                quoted(path),
                hex(build_id)
            ));
        }
    }
}
