//! The end of a session: what is still to come is waited for, and the profile is closed with its quality.

use std::time::Duration;

use profiler_common::counter::{Counter, CounterKind};
use profiler_model::{Profile, Quality};
use tokio::time::{Instant, timeout_at};

use super::{Session, SessionError, TICK};
use crate::worker::Worker;
use crate::{clock, symbols};

/// How long tables, and then symbols, may still be waited for when sampling is over.
pub(super) const FINISH: Duration = Duration::from_secs(60);

/// What is known when sampling is over.
pub(crate) struct Sampled {
    duration_ns: u64,
    missed: profiler_model::Missed,
}

impl Session {
    /// Stops sampling, waits for tables and symbols, and closes the profile.
    pub(crate) async fn finish(mut self, started_ns: u64) -> Result<Profile, SessionError> {
        let sampled = self.end(started_ns).await?;
        self.fetch_debug_files().await;
        self.close(sampled)
    }

    /// Stops sampling, and waits for tables and symbols.
    pub(crate) async fn end(&mut self, started_ns: u64) -> Result<Sampled, SessionError> {
        self.sampling.stop()?;
        let duration_ns = clock::monotonic().0.saturating_sub(started_ns);
        let taken_per_cpu = self.counters.per_cpu(Counter::SamplesTaken)?;
        let missed = self.busy.missed(self.frequency_hz, &taken_per_cpu);

        let deadline = Instant::now() + FINISH;
        self.run_until(tokio::time::sleep(Duration::from_millis(50))).await;
        self.drain();
        self.tracker.catch_up(&mut self.events);
        self.settled = self.tracker.known_up_to();
        self.take_in_picked();
        self.tick();
        while self.waiting.needs_tables() && Instant::now() < deadline {
            self.run_until(tokio::time::sleep(TICK)).await;
        }
        let Self { waiting, tracker, generated, aggregator, counts, .. } = self;
        waiting.give_up(tracker, counts, |sample| generated.add(sample, aggregator, tracker));
        self.finish_generated(deadline).await;
        symbols::request(&mut self.aggregator, &self.tracker, &mut self.symbols_worker);
        self.wait_for_symbols().await;
        Ok(Sampled { duration_ns, missed })
    }

    async fn wait_for_symbols(&mut self) {
        let deadline = Instant::now() + FINISH;
        while self.symbols_worker.pending() > 0 && Instant::now() < deadline {
            let Ok(reply) = timeout_at(deadline, self.symbols_worker.next_reply()).await else { break };
            self.answered(reply);
        }
    }

    /// Asks servers for debug information, if it is to: first of executables, then what dwz moved out of that.
    /// Dropping the future gives up what is not there yet.
    pub(crate) async fn fetch_debug_files(&mut self) {
        const ROUNDS: usize = 2;
        for _ in 0..ROUNDS {
            let Some(debuginfod) = self.debuginfod.as_mut().filter(|_| self.symbols_worker.pending() == 0) else {
                return;
            };
            let files = debuginfod.fetch(&self.aggregator, &mut self.counts).await;
            if files.is_empty() {
                return;
            }
            self.symbols_worker.forget();
            debuginfod.request(&files, &self.aggregator, &mut self.symbols_worker);
            self.wait_for_symbols().await;
            if let Some(debuginfod) = &mut self.debuginfod {
                debuginfod.check(&files, &mut self.counts);
            }
        }
    }

    /// The profile of what was sampled.
    pub(crate) fn close(mut self, Sampled { duration_ns, missed }: Sampled) -> Result<Profile, SessionError> {
        if let Some(debuginfod) = &self.debuginfod {
            debuginfod.conclude(&mut self.counts);
        }
        symbols::count_failed(&self.aggregator, &mut self.counts);
        if let Some(why) = symbols::name_kernel(&mut self.aggregator, &self.bpf_code) {
            self.aggregator.profile.add_note(&format!("kernel functions have no names: {why}"));
        }
        for note in self.tracker.counts.notes().chain(self.counts.notes()) {
            self.aggregator.profile.add_note(&note);
        }
        let quality = self.quality(missed)?;
        let mut profile = self.aggregator.profile;
        profile.quality = quality;
        profile.set_duration_ns(duration_ns);
        Ok(profile)
    }

    /// Asks for the names of generated code a last time.
    async fn finish_generated(&mut self, deadline: Instant) {
        self.generated.request(&mut self.generated_worker, &self.tracker, true);
        while self.generated.is_busy() {
            let Ok(reply) = timeout_at(deadline, self.generated_worker.next_reply()).await else { break };
            self.answered(reply);
            // What is still written meanwhile is not waited for.
            self.generated.request(&mut self.generated_worker, &self.tracker, false);
        }
        self.generated.give_up(&mut self.aggregator, &self.tracker, &mut self.counts);
    }

    fn quality(&self, missed: profiler_model::Missed) -> Result<Quality, SessionError> {
        let mut quality = Quality { missed_by_kernel: Some(missed), ..Quality::default() };
        for counter in Counter::ALL {
            let user = self.counts.get(*counter) + self.tracker.counts.get(*counter);
            let count = self.counters.total(*counter)? + user;
            let section = match counter.kind() {
                CounterKind::Taken => {
                    quality.samples_taken = count;
                    continue;
                }
                CounterKind::Filtered => &mut quality.filtered,
                CounterKind::Lost => &mut quality.lost,
                CounterKind::Event if *counter == Counter::SamplesDelivered => continue,
                CounterKind::Event => &mut quality.errors,
            };
            if count > 0 {
                section.insert(counter.name().to_owned(), count);
            }
        }
        let written = profiler_model::Figures::of(&self.aggregator.profile).samples;
        let told = written + quality.samples_filtered() + quality.samples_lost();
        let unaccounted = [
            (&mut quality.lost, Counter::LostUnaccounted, quality.samples_taken.saturating_sub(told)),
            (&mut quality.errors, Counter::SurplusSamples, told.saturating_sub(quality.samples_taken)),
        ];
        for (section, counter, count) in unaccounted.into_iter().filter(|(_section, _counter, count)| *count > 0) {
            section.insert(counter.name().to_owned(), count);
        }
        let workers = [&self.tables_worker, &self.symbols_worker, &self.generated_worker];
        let restarts = workers.into_iter().map(Worker::restarts).sum();
        if restarts > 0 {
            quality.errors.insert(Counter::WorkerRestarts.name().to_owned(), restarts);
        }
        Ok(quality)
    }
}
