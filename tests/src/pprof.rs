//! A decoded pprof, with its tables resolved.

use std::collections::BTreeMap;
use std::io::Read as _;

use flate2::read::GzDecoder;
use profiler_export::pprof::proto;
use prost::Message as _;

/// A pprof.
#[derive(Clone, Debug)]
pub struct Pprof(pub proto::Profile);

impl Pprof {
    /// Decodes a `.pb.gz` file.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Self {
        let mut message = Vec::new();
        GzDecoder::new(bytes).read_to_end(&mut message).expect("a gzip'd file");
        Self(proto::Profile::decode(message.as_slice()).expect("a pprof"))
    }

    /// A string of its table.
    #[must_use]
    pub fn text(&self, index: i64) -> &str {
        &self.0.string_table[usize::try_from(index).expect("an index")]
    }

    /// The comments `name=value`.
    #[must_use]
    pub fn comments(&self) -> BTreeMap<&str, &str> {
        self.0.comment.iter().filter_map(|index| self.text(*index).split_once('=')).collect()
    }

    /// The function of a name.
    #[must_use]
    pub fn function(&self, name: &str) -> Option<&proto::Function> {
        self.0.function.iter().find(|function| self.text(function.name) == name)
    }

    /// The mapping of the file that ends in this name.
    #[must_use]
    pub fn mapping(&self, file: &str) -> Option<&proto::Mapping> {
        self.0.mapping.iter().find(|mapping| self.text(mapping.filename).ends_with(file))
    }

    /// The labels of a sample: texts as they are, numbers in decimal.
    #[must_use]
    pub fn labels(&self, sample: &proto::Sample) -> BTreeMap<&str, String> {
        let value = |label: &proto::Label| match label.str {
            0 => label.num.to_string(),
            text => self.text(text).to_owned(),
        };
        sample.label.iter().map(|label| (self.text(label.key), value(label))).collect()
    }

    /// The names of a sample's functions, leaf first.
    #[must_use]
    pub fn names(&self, sample: &proto::Sample) -> Vec<&str> {
        let mut names = Vec::new();
        for id in &sample.location_id {
            let location = self.0.location.iter().find(|location| location.id == *id).expect("the sample's location");
            for line in &location.line {
                let function = self.0.function.iter().find(|function| function.id == line.function_id);
                names.push(self.text(function.expect("the line's function").name));
            }
        }
        names
    }
}
