//! The tables in ARCHITECTURE.md, and what of a tree's arrows they forbid.

use std::collections::{BTreeMap, BTreeSet};

use crate::arrows::Arrows;

/// What ARCHITECTURE.md says.
#[derive(Debug)]
pub(crate) struct Rules {
    /// Rooms, first to last, each with those that it may import.
    rooms: Vec<(String, BTreeSet<String>)>,
    /// Crates that may be used in some modules only, with what is below those.
    crates: BTreeMap<String, Vec<String>>,
}

/// The names in backticks.
fn quoted(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The rows of the table with this header, as cells.
fn table<'a>(document: &'a str, header: &str) -> Vec<Vec<&'a str>> {
    let rows = document.lines().skip_while(|line| *line != header).skip(2);
    rows.take_while(|line| line.starts_with('|')).map(|row| row.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

impl Rules {
    /// Reads both tables.
    ///
    /// # Errors
    /// If a row cannot be understood, or lets a room import one that is not further down.
    pub(crate) fn read(document: &str) -> Result<Self, String> {
        let rows = table(document, "| room | owns | may import |");
        let names: Vec<String> = rows.iter().map(|row| quoted(row[0]).concat()).collect();
        let mut rooms = Vec::new();
        for (n, row) in rows.iter().enumerate() {
            let below = &names[n + 1..];
            let imports: BTreeSet<String> = match row[..] {
                [_, _, "nothing"] => BTreeSet::new(),
                [_, _, "all below"] => below.iter().cloned().collect(),
                [_, _, imports] => quoted(imports).into_iter().collect(),
                _ => return Err(format!("a row of the rooms' table has not three cells: {row:?}")),
            };
            if let Some(import) = imports.iter().find(|import| !below.contains(import)) {
                return Err(format!("`{}` may import `{import}`, which is no room further down in the table", names[n]));
            }
            rooms.push((names[n].clone(), imports));
        }
        let crates = table(document, "| crate | only in |").iter().map(|row| (quoted(row[0]).concat(), quoted(row[1]))).collect();
        Ok(Self { rooms, crates })
    }

    /// The table's rooms.
    pub(crate) fn names(&self) -> BTreeSet<String> {
        self.rooms.iter().map(|(name, _)| name.clone()).collect()
    }

    fn permits(&self, from: &str, to: &str) -> bool {
        self.rooms.iter().any(|(name, imports)| name == from && imports.contains(to))
    }

    /// What the tables forbid: a room and a room, or a room and a crate, with the places.
    pub(crate) fn broken(&self, arrows: &Arrows) -> BTreeMap<(String, String), BTreeSet<String>> {
        let mut broken: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
        for ((from, to), places) in &arrows.rooms {
            if !self.permits(from, to) {
                broken.entry((from.clone(), to.clone())).or_default().extend(places.clone());
            }
        }
        for ((module, other), places) in &arrows.crates {
            let Some(homes) = self.crates.get(other) else { continue };
            let at_home = homes.iter().any(|home| home.split("::").zip(module).filter(|(a, b)| a == b).count() == home.split("::").count());
            if !at_home {
                broken.entry((module.join("::"), other.clone())).or_default().extend(places.clone());
            }
        }
        broken
    }
}

/// Rooms that reach each other, if there are any: an arrow's two ends with a way back.
pub(crate) fn circle(arrows: &Arrows, excepted: &BTreeSet<(String, String)>) -> Option<Vec<String>> {
    let next = |from: &str| {
        let arrows = arrows.rooms.keys().filter(move |arrow| !excepted.contains(*arrow));
        arrows.filter(move |(a, _)| a == from).map(|(_, b)| b.clone()).collect::<Vec<_>>()
    };
    let rooms: BTreeSet<&String> = arrows.rooms.keys().map(|(from, _)| from).collect();
    rooms.into_iter().find_map(|start| {
        let mut ways: Vec<Vec<String>> = vec![vec![start.clone()]];
        let mut seen = BTreeSet::new();
        while let Some(way) = ways.pop() {
            for to in next(&way[way.len() - 1]) {
                let longer = [way.clone(), vec![to.clone()]].concat();
                if to == *start {
                    return Some(longer);
                }
                if seen.insert(to) {
                    ways.push(longer);
                }
            }
        }
        None
    })
}
