//! The code that a process makes at run time, and where it tells of it.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use profiler_common::address::Pid;
use serde::Serialize;
use tokio::time::timeout;

use crate::generated::{Told, told};
use crate::proc_fs;
use crate::tracker::Tracker;
use crate::worker::{MapKey, Reply, Role, Worker};

/// How long a map may take to be read. One of 100 MB takes a second.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(30);

/// Where a process tells of the code that it makes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum Names {
    /// In a perf map.
    PerfMap {
        /// Where it is.
        path: String,
        /// How long it is now.
        size_bytes: u64,
    },
    /// In a jitdump.
    Jitdump {
        /// Where it is.
        path: String,
        /// How long it is now.
        size_bytes: u64,
    },
    /// There is something that is not used.
    Refused {
        /// What and why.
        why: String,
    },
    /// Nowhere.
    #[default]
    None,
}

/// What is known of the code that a process makes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Generated {
    pub(super) names: Names,
    /// What the process is in its own pid namespace: the number by which its tools know it.
    pub(super) own_pid: Option<Pid>,
}

impl Generated {
    /// Looks for what the process tells now.
    pub(super) async fn of_process(tracker: &Tracker, pid: Pid) -> Self {
        let told = tracker.process(pid).map_or(Told::Nowhere, told);
        let own_pid = proc_fs::own(pid).map(|own| own.pid);
        let names = match told {
            Told::Nowhere => Names::None,
            Told::Refused(why) => Names::Refused { why },
            Told::Map(file, path) => match read(&file).await {
                Ok(size_bytes) => Names::PerfMap { path, size_bytes },
                Err(why) => Names::Refused { why: format!("{path} is not used: {why}") },
            },
            Told::Dump(file, path) => match read(&file).await {
                Ok(size_bytes) => Names::Jitdump { path, size_bytes },
                Err(why) => Names::Refused { why: format!("{path} is not used: {why}") },
            },
        };
        Self { names, own_pid }
    }
}

/// Has a worker read it. Returns its length, or what is wrong with it.
async fn read(file: &Arc<OwnedFd>) -> Result<u64, String> {
    let mut worker = Worker::later(Role::Generated, Path::new("/proc/self/exe"));
    let _asked = worker.request_generated(MapKey(0), file, &[]);
    match timeout(LIMIT, worker.next_reply()).await {
        Ok(Reply::Generated { result: Err(error), .. }) => Err(error.to_string()),
        Ok(_) => rustix::fs::fstat(file).map(|stat| stat.st_size.unsigned_abs()).map_err(|error| error.to_string()),
        Err(_elapsed) => Err("reading it took too long".to_owned()),
    }
}
