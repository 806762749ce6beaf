//! The messages of pprof's `profile.proto` (package `perftools.profiles`), written by hand: field
//! numbers and types as in
//! <https://github.com/google/pprof/blob/b9395ee/proto/profile.proto>.
//!
//! A field that counts strings is an index into `string_table`; 0 is the empty string, "not set".

/// The whole file.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Profile {
    /// What the values of each sample mean, in their order.
    #[prost(message, repeated, tag = "1")]
    pub sample_type: Vec<ValueType>,
    /// The samples.
    #[prost(message, repeated, tag = "2")]
    pub sample: Vec<Sample>,
    /// The mappings, that of the main executable first.
    #[prost(message, repeated, tag = "3")]
    pub mapping: Vec<Mapping>,
    /// The locations.
    #[prost(message, repeated, tag = "4")]
    pub location: Vec<Location>,
    /// The functions.
    #[prost(message, repeated, tag = "5")]
    pub function: Vec<Function>,
    /// All strings; the first is empty.
    #[prost(string, repeated, tag = "6")]
    pub string_table: Vec<String>,
    /// When sampling began, in ns since 1970-01-01 UTC.
    #[prost(int64, tag = "9")]
    pub time_nanos: i64,
    /// How long it went on, in ns.
    #[prost(int64, tag = "10")]
    pub duration_nanos: i64,
    /// What is counted between two samples.
    #[prost(message, optional, tag = "11")]
    pub period_type: Option<ValueType>,
    /// How much of it.
    #[prost(int64, tag = "12")]
    pub period: i64,
    /// Texts for the reader (strings).
    #[prost(int64, repeated, tag = "13")]
    pub comment: Vec<i64>,
    /// Which sample type to show (string).
    #[prost(int64, tag = "14")]
    pub default_sample_type: i64,
}

/// A kind of value and its unit.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ValueType {
    /// The kind (string).
    #[prost(int64, tag = "1")]
    pub r#type: i64,
    /// The unit (string).
    #[prost(int64, tag = "2")]
    pub unit: i64,
}

/// A stack with its values and labels.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Sample {
    /// The stack, leaf first (ids of locations).
    #[prost(uint64, repeated, tag = "1")]
    pub location_id: Vec<u64>,
    /// A value per sample type.
    #[prost(int64, repeated, tag = "2")]
    pub value: Vec<i64>,
    /// What else is known of it.
    #[prost(message, repeated, tag = "3")]
    pub label: Vec<Label>,
}

/// A key and its value: a string or a number.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Label {
    /// The key (string).
    #[prost(int64, tag = "1")]
    pub key: i64,
    /// The value, if it is a string.
    #[prost(int64, tag = "2")]
    pub str: i64,
    /// The value, if it is a number.
    #[prost(int64, tag = "3")]
    pub num: i64,
    /// The number's unit (string). A label with neither string, number other than 0 nor unit is
    /// dropped by readers.
    #[prost(int64, tag = "4")]
    pub num_unit: i64,
}

/// A part of a file in an address space.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Mapping {
    /// Its id: from 1 on.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The first address.
    #[prost(uint64, tag = "2")]
    pub memory_start: u64,
    /// The address after the last one.
    #[prost(uint64, tag = "3")]
    pub memory_limit: u64,
    /// Where in the file the first address is.
    #[prost(uint64, tag = "4")]
    pub file_offset: u64,
    /// The file (string).
    #[prost(int64, tag = "5")]
    pub filename: i64,
    /// The build id in hex (string).
    #[prost(int64, tag = "6")]
    pub build_id: i64,
    /// Its locations have function names.
    #[prost(bool, tag = "7")]
    pub has_functions: bool,
    /// Its functions have files.
    #[prost(bool, tag = "8")]
    pub has_filenames: bool,
    /// Its locations have line numbers.
    #[prost(bool, tag = "9")]
    pub has_line_numbers: bool,
    /// Its locations have inlined functions.
    #[prost(bool, tag = "10")]
    pub has_inline_frames: bool,
}

/// An address and what is there.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Location {
    /// Its id: from 1 on.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The mapping's id; 0: none.
    #[prost(uint64, tag = "2")]
    pub mapping_id: u64,
    /// The address, as it was when the sample was taken.
    #[prost(uint64, tag = "3")]
    pub address: u64,
    /// The functions there, the innermost inlined one first.
    #[prost(message, repeated, tag = "4")]
    pub line: Vec<Line>,
}

/// A line of a function.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Line {
    /// The function's id.
    #[prost(uint64, tag = "1")]
    pub function_id: u64,
    /// The line; 0: not known.
    #[prost(int64, tag = "2")]
    pub line: i64,
    /// The column; 0: not known.
    #[prost(int64, tag = "3")]
    pub column: i64,
}

/// A function.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Function {
    /// Its id: from 1 on.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The name for people (string).
    #[prost(int64, tag = "2")]
    pub name: i64,
    /// The name in the file (string).
    #[prost(int64, tag = "3")]
    pub system_name: i64,
    /// The source file (string).
    #[prost(int64, tag = "4")]
    pub filename: i64,
    /// Where it begins; 0: not known.
    #[prost(int64, tag = "5")]
    pub start_line: i64,
}
