//! Programs beside the recording, ended with all that they started when the recording is over, however it ends.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::inputs::Inputs;

/// A server has that long to be ready, or to end.
const LIMIT: Duration = Duration::from_secs(60);
const INTERVAL: Duration = Duration::from_millis(100);

/// A process group; it gets SIGTERM when it is dropped, and SIGKILL where that is not enough. If this program is
/// killed, its first process gets SIGTERM from the kernel.
pub(super) struct Service {
    child: Child,
}

impl Service {
    /// Starts a script.
    pub(super) fn start(inputs: &Inputs, script: &str) -> Result<Self> {
        let mut command = inputs.command("setpriv");
        command.args(["--pdeathsig", "TERM", "sh", "-c", script]).process_group(0);
        Ok(Self { child: command.spawn().with_context(|| format!("starting `{script}`"))? })
    }

    /// Its first process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// It, its children, and theirs.
    pub(super) fn family(&self) -> Vec<u32> {
        super::family(self.pid())
    }

    /// Waits until a script succeeds.
    pub(super) fn wait_until(&mut self, inputs: &Inputs, ready: &str) -> Result<()> {
        let end = Instant::now() + LIMIT;
        while !inputs.script(ready).status().is_ok_and(|status| status.success()) {
            if let Some(status) = self.child.try_wait().context("waiting for a server")? {
                bail!("the server ended before it was ready: {status}");
            }
            if Instant::now() > end {
                bail!("the server was not ready in {LIMIT:?}: `{ready}` fails");
            }
            sleep(INTERVAL);
        }
        Ok(())
    }

    fn signal(&self, name: &str) {
        let mut kill = Command::new("kill");
        kill.args([&format!("-{name}"), "--", &format!("-{}", self.pid())]);
        // Fails where all have ended.
        let _gone = kill.stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.signal("TERM");
        let end = Instant::now() + LIMIT;
        while Instant::now() < end && matches!(self.child.try_wait(), Ok(None)) {
            sleep(INTERVAL);
        }
        // Its group may outlive the first process.
        self.signal("KILL");
        let _reaped = self.child.wait();
        // The JVM leaves the names of its code there.
        let _none = fs::remove_file(format!("/tmp/perf-{}.map", self.pid()));
    }
}
