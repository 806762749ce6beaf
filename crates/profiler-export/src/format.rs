//! Which format a file name asks for.

use std::path::{Path, PathBuf};

use thiserror::Error;

/// A format of an output file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A flame graph: an SVG that a browser can zoom and search.
    FlameGraph,
    /// Folded stacks: a line of text per stack.
    Folded,
    /// pprof's protobuf, compressed by gzip.
    Pprof,
}

/// A file name that ends like none of the formats.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{}: the name ends in no format that is known ({})", .0.display(), Format::known())]
pub struct UnknownFormat(pub PathBuf);

impl Format {
    /// Every format.
    pub const ALL: [Self; 3] = [Self::FlameGraph, Self::Folded, Self::Pprof];

    /// How the names of its files end.
    #[must_use]
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::FlameGraph => ".svg",
            Self::Folded => ".folded",
            Self::Pprof => ".pb.gz",
        }
    }

    /// The format that the end of a file name asks for.
    ///
    /// # Errors
    /// When it ends like none of them; the message lists them.
    pub fn from_path(path: &Path) -> Result<Self, UnknownFormat> {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        Self::ALL
            .into_iter()
            .find(|format| name.ends_with(format.suffix().as_bytes()))
            .ok_or_else(|| UnknownFormat(path.into()))
    }

    fn known() -> String {
        Self::ALL.map(Self::suffix).join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_name_decides() {
        let of = |path: &str| Format::from_path(Path::new(path));
        assert_eq!(of("flame.svg"), Ok(Format::FlameGraph));
        assert_eq!(of("/tmp/a.b/x.folded"), Ok(Format::Folded));
        assert_eq!(of("cpu.svg.pb.gz"), Ok(Format::Pprof));
        assert_eq!(of(".svg"), Ok(Format::FlameGraph));
        for unknown in ["", "/", "x.pb", "x.gz", "x.svg/y", "x.svg/..", "svg", "x.SVG"] {
            assert_eq!(of(unknown), Err(UnknownFormat(unknown.into())));
        }
        let message = of("a.txt").unwrap_err().to_string();
        assert_eq!(message, "a.txt: the name ends in no format that is known (.svg, .folded, .pb.gz)");
    }
}
