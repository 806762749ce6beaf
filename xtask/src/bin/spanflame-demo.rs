//! The program that `cargo xtask demo` profiles: a few threads that do recognizable work.
//! `spanflame-demo SECONDS` ends by itself.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

/// Some work; the round makes it different each time.
type Job = fn(u64);

fn main() {
    let seconds = std::env::args().nth(1).and_then(|word| word.parse().ok()).unwrap_or(5);
    let end = Instant::now() + Duration::from_secs(seconds);
    thread::scope(|scope| {
        let jobs: [(&str, Job); 3] = [("primes", find_primes), ("words", count_words), ("matrix", multiply_matrices)];
        for (name, job) in jobs {
            let started = thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, move || work(job, end));
            if let Err(error) = started {
                eprintln!("starting the thread `{name}`: {error}");
            }
        }
    });
}

fn work(job: Job, end: Instant) {
    let mut round = 0;
    while Instant::now() < end {
        job(round);
        round += 1;
    }
}

#[inline(never)]
fn find_primes(round: u64) {
    let from = 100_000 + round % 1000 * 100;
    black_box((from..from + 2000).filter(|number| is_prime(*number)).count());
}

#[inline(never)]
fn is_prime(number: u64) -> bool {
    (2..).take_while(|divisor| divisor * divisor <= number).all(|divisor| !number.is_multiple_of(divisor))
}

#[inline(never)]
fn count_words(round: u64) {
    let mut counts: HashMap<String, u32> = HashMap::new();
    for index in 0..5000 {
        *counts.entry(make_word(round ^ index)).or_default() += 1;
    }
    black_box(sort_by_count(counts));
}

#[inline(never)]
fn make_word(seed: u64) -> String {
    let letter = |shift: u64| char::from(b'a' + (seed.wrapping_mul(6_364_136_223_846_793_005) >> shift) as u8 % 26);
    [13, 29, 43].into_iter().map(letter).collect()
}

#[inline(never)]
fn sort_by_count(counts: HashMap<String, u32>) -> Vec<(String, u32)> {
    let mut words: Vec<_> = counts.into_iter().collect();
    words.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    words
}

/// Rows and columns of the matrices.
const SIZE: usize = 96;

#[inline(never)]
fn multiply_matrices(round: u64) {
    let cell = |index: usize| (index as f64 + round as f64).sin();
    let a: Vec<f64> = (0..SIZE * SIZE).map(cell).collect();
    let b: Vec<f64> = a.iter().rev().copied().collect();
    let mut product = vec![0.0; SIZE * SIZE];
    for (row, out) in product.chunks_mut(SIZE).enumerate() {
        for (column, out) in out.iter_mut().enumerate() {
            *out = dot_product(&a[row * SIZE..(row + 1) * SIZE], &b, column);
        }
    }
    black_box(product);
}

#[inline(never)]
fn dot_product(row: &[f64], matrix: &[f64], column: usize) -> f64 {
    row.iter().enumerate().map(|(index, value)| value * matrix[index * SIZE + column]).sum()
}
