//! The colours of a flame graph: one hue for each kind of frame, a shade for each name.

use inferno::flamegraph::color::{Color, PaletteMap};

use crate::folded::INCOMPLETE;
use crate::frame::Mark;

/// What inferno calls the frame below all others while it colours it; on the picture it is `all`.
const ROOT: &str = "";

/// The colour of every frame in folded `lines`.
pub(crate) fn colours(lines: &[String]) -> PaletteMap {
    let mut colours = PaletteMap::default();
    colours.insert(ROOT, colour(ROOT));
    for line in lines {
        let stack = line.rsplit_once(' ').map_or("", |(stack, _count)| stack);
        for name in stack.split(';') {
            if colours.get(name).is_none() {
                colours.insert(name, colour(name));
            }
        }
    }
    colours
}

/// The darkest and the brightest shade of the hue that a name has.
fn colour(name: &str) -> Color {
    let (dark, bright) = if name.ends_with(Mark::Kernel.suffix()) {
        // Orange.
        ([190, 90, 0], [255, 155, 0])
    } else if name.ends_with(Mark::Inlined.suffix()) {
        // Blue-green.
        ([50, 165, 165], [110, 220, 220])
    } else if name.starts_with(INCOMPLETE) {
        // Grey.
        ([190, 190, 190], [190, 190, 190])
    } else if name.contains("::") {
        // Yellow: C++ and Rust.
        ([175, 175, 50], [230, 230, 70])
    } else {
        // Red.
        ([200, 50, 50], [255, 130, 130])
    };
    let shade = u16::from(hash(name).to_be_bytes()[0]);
    let part = |dark: u8, bright: u8| {
        let distance = u16::from(bright - dark) * shade / 255;
        dark + u8::try_from(distance).unwrap_or(0)
    };
    Color { r: part(dark[0], bright[0]), g: part(dark[1], bright[1]), b: part(dark[2], bright[2]) }
}

/// FNV-1a, 64 bits: the same in every build, so that a graph is too.
fn hash(name: &str) -> u64 {
    let mix = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    name.bytes().fold(0xcbf2_9ce4_8422_2325, mix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_frame_has_its_hue() {
        let colours = colours(&[
            "p;libz.so.1+0x10;A_b.c;x::y;z_[i];k_[k] 1".to_owned(),
            "p;[incomplete: no_table];f 2".to_owned(),
        ]);
        let hue =
            |name| colours.get(name).map(|Color { r, g, b }| (r.max(g).max(b) == r, g > r, r == g, b == 0)).unwrap();
        for red in ["p", "libz.so.1+0x10", "A_b.c", "f"] {
            assert_eq!(hue(red), (true, false, false, false), "{red}");
        }
        assert_eq!(hue("k_[k]"), (true, false, false, true));
        assert_eq!(hue("z_[i]"), (false, true, false, false));
        assert_eq!(hue("x::y"), (true, false, true, false));
        assert_eq!(colours.get("[incomplete: no_table]"), Some(Color { r: 190, g: 190, b: 190 }));
    }
}
