//! A release build as rustc and its default linker make it. `cart MS`

use std::hint::black_box;
use std::time::{Duration, Instant};

mod shop {
    use std::hint::black_box;

    pub struct Cart<T>(pub T);

    impl Cart<u64> {
        #[inline(never)]
        pub fn total(&self, rounds: u32) -> u64 {
            let mut x = self.0;
            for _ in 0..rounds {
                x = black_box(x.wrapping_mul(6364136223846793005).wrapping_add(1));
            }
            x
        }
    }

    #[inline(never)]
    pub fn checkout(cart: &Cart<u64>) -> u64 {
        let x = cart.total(1_000_000);
        black_box(x) ^ 1
    }
}

#[inline(never)]
fn serve(x: u64) -> u64 {
    let y = shop::checkout(&shop::Cart(x));
    black_box(y) ^ 2
}

fn main() {
    let milliseconds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(4000);
    let end = Instant::now() + Duration::from_millis(milliseconds);
    let mut x = 1;
    while Instant::now() < end {
        x = black_box(serve(x));
    }
}
