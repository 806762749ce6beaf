//! One boot of a kernel under QEMU without hardware virtualization, until the guest powers off.

use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::Architecture;

/// What came out of a boot.
pub(super) struct Boot {
    /// Everything on the serial console.
    pub(super) console: String,
    /// Did QEMU have to be killed?
    pub(super) timed_out: bool,
}

/// Boots and returns the console when the guest ends or the time is over.
pub(super) fn boot(architecture: Architecture, kernel: &Path, initrd: &Path, limit: Duration) -> Result<Boot> {
    let mut command = Command::new(architecture.qemu());
    command.args(architecture.machine());
    command.args(["-accel", "tcg,thread=multi", "-smp", "2", "-m", "1024", "-kernel"]).arg(kernel);
    command.arg("-initrd").arg(initrd).arg("-append");
    // panic=-1: reboot at once, which -no-reboot turns into an exit.
    command.arg(format!("console={} quiet panic=-1", architecture.console()));
    command.args(["-nographic", "-no-reboot", "-net", "none"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let child = command
        .spawn()
        .with_context(|| format!("starting {}: `cargo xtask setup --for vm` installs it", architecture.qemu()))?;
    collect(child, limit)
}

fn collect(mut child: Child, limit: Duration) -> Result<Boot> {
    let mut stdout = child.stdout.take().context("QEMU has no stdout")?;
    let (sender, receiver) = sync_channel(16);
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = stdout.read(&mut buffer) {
            if sender.send(buffer[..length].to_vec()).is_err() {
                break;
            }
        }
    });
    let end = Instant::now() + limit;
    let mut console = Vec::new();
    let timed_out = loop {
        match receiver.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(bytes) => console.extend(bytes),
            Err(RecvTimeoutError::Disconnected) => break false,
            Err(RecvTimeoutError::Timeout) => break true,
        }
    };
    if timed_out {
        child.kill().context("ending QEMU")?;
    }
    child.wait().context("waiting for QEMU")?;
    Ok(Boot { console: String::from_utf8_lossy(&console).into_owned(), timed_out })
}
