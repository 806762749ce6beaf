//! The table: what each profiler cost beside each load, and how that stands to perf and to the bounds.

use anyhow::Result;
use serde_json::{Value, json};

use super::super::MIB;
use super::run::Run;
use super::tool::Tool;

/// Opens the table.
pub(super) const HEAD: &str = "| load | profiler | samples | CPU ms / 1000 samples | of it kernel programs | first sample s | CPU s \
                               to it | graph s | memory MiB |\n|---|---|--:|--:|--:|--:|--:|--:|--:|";

/// The most that spanflame's figure may be, in units of what it is compared with.
struct Aim {
    what: &'static str,
    value: fn(&Run) -> Option<f64>,
    bound: Bound,
}

enum Bound {
    /// So many times perf's by copies of stacks, in the same run.
    OfPerf(f64),
    Fixed(f64),
}

/// All of them.
const AIMS: &[Aim] = &[
    Aim { what: "CPU of 1000 samples", value: |run| Some(run.cpu_ms), bound: Bound::OfPerf(1.0) },
    Aim { what: "time to the graph", value: |run| Some(run.graph_s), bound: Bound::OfPerf(0.2) },
    Aim { what: "first sample", value: |run| run.first_sample_s, bound: Bound::Fixed(0.3) },
    Aim { what: "CPU to the first sample", value: |run| run.start_cpu_s, bound: Bound::Fixed(0.25) },
    Aim { what: "memory", value: |run| Some(run.memory_bytes as f64), bound: Bound::Fixed(120.0 * MIB) },
];

/// All runs of one profiler beside one load.
pub(super) struct Row {
    pub(super) load: &'static str,
    pub(super) tool: Tool,
    pub(super) runs: Vec<Run>,
}

/// Median, least and most.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            *values.get(middle)?
        } else {
            (values.get(middle.checked_sub(1)?)? + values.get(middle)?) / 2.0
        };
        Some(Self { median, least: *values.first()?, most: *values.last()? })
    }

    fn text(self, unit: f64) -> String {
        format!("{:.2} ({:.2} to {:.2})", self.median / unit, self.least / unit, self.most / unit)
    }
}

impl Row {
    fn spread(&self, value: fn(&Run) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.runs.iter().filter_map(value))
    }

    /// Its line of the table.
    pub(super) fn markdown(&self) -> String {
        let cell =
            |value: fn(&Run) -> Option<f64>, unit| self.spread(value).map_or_else(String::new, |of| of.text(unit));
        format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            self.load,
            self.tool.name(),
            self.spread(|run| Some(run.samples as f64)).map_or(0.0, |of| of.median),
            cell(|run| Some(run.cpu_ms), 1.0),
            cell(|run| Some(run.programs_ms), 1.0),
            cell(|run| run.first_sample_s, 1.0),
            cell(|run| run.start_cpu_s, 1.0),
            cell(|run| Some(run.graph_s), 1.0),
            cell(|run| Some(run.memory_bytes as f64), MIB),
        )
    }

    pub(super) fn json(&self) -> Value {
        let run = |run: &Run| {
            json!({
                "samples": run.samples,
                "cpu_ms_per_1000_samples": run.cpu_ms,
                "programs_ms_per_1000_samples": run.programs_ms,
                "first_sample_s": run.first_sample_s,
                "start_cpu_s": run.start_cpu_s,
                "graph_s": run.graph_s,
                "memory_bytes": run.memory_bytes,
            })
        };
        json!({ "load": self.load, "profiler": self.tool.name(), "runs": self.runs.iter().map(run).collect::<Vec<_>>() })
    }
}

/// Prints how spanflame stands to each bound, and says which do not hold.
///
/// # Errors
/// If one does not.
pub(super) fn conclude(rows: &[Row]) -> Result<()> {
    println!("\n| load | aim | spanflame | bound | part of the bound |\n|---|---|--:|--:|--:|");
    let mut missed = Vec::new();
    for ours in rows.iter().filter(|row| row.tool == Tool::Spanflame) {
        let perf = rows.iter().find(|row| row.tool == Tool::PerfDwarf && row.load == ours.load);
        for aim in AIMS {
            let median = |row: &Row| row.spread(aim.value).map(|of| of.median);
            let bound = match aim.bound {
                Bound::OfPerf(part) => perf.and_then(median).map(|of| part * of),
                Bound::Fixed(bound) => Some(bound),
            };
            let (Some(value), Some(bound)) = (median(ours), bound) else { continue };
            println!("| {} | {} | {value:.2} | {bound:.2} | {:.2} |", ours.load, aim.what, value / bound);
            if value > bound {
                missed.push(format!("{} beside {}", aim.what, ours.load));
            }
        }
    }
    anyhow::ensure!(missed.is_empty(), "above the bound: {}", missed.join(", "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(tool: Tool, cpu_ms: &[f64]) -> Row {
        let run = |&cpu_ms: &f64| Run { cpu_ms, graph_s: 1.0, ..Run::default() };
        Row { load: "x", tool, runs: cpu_ms.iter().map(run).collect() }
    }

    #[test]
    fn the_median_counts() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0].into_iter()), Some(Spread { median: 2.0, least: 1.0, most: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0].into_iter()).map(|of| of.median), Some(2.5));
        assert_eq!(Spread::of(std::iter::empty()), None);
    }

    #[test]
    fn a_bound_is_held_or_named() {
        let mut rows = [row(Tool::Spanflame, &[2.0, 3.0]), row(Tool::PerfDwarf, &[2.6])];
        rows[0].runs.iter_mut().for_each(|run| run.graph_s = 0.1);
        conclude(&rows).unwrap();
        rows[1].runs[0].cpu_ms = 2.4;
        assert_eq!(conclude(&rows).unwrap_err().to_string(), "above the bound: CPU of 1000 samples beside x");
        rows[1].runs[0].cpu_ms = 2.6;
        rows[0].runs.iter_mut().for_each(|run| run.graph_s = 0.3);
        assert_eq!(conclude(&rows).unwrap_err().to_string(), "above the bound: time to the graph beside x");
    }
}
