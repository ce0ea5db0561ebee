//! The modules of a crate, read from its source files: what each one names, imports and refers to. Knows nothing of rooms.
//!
//! Code for tests only (`#[cfg(test)]` items and the files that they bring in) is left out. Paths are found everywhere: in
//! `use` items, inline, in the tokens of macros, and in attributes that name a function in a string.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, Ident, TokenStream, TokenTree};
use syn::ext::IdentExt as _;
use syn::visit::{self, Visit};
use syn::{Attribute, Item, Meta, UseTree};

/// The names of a path, `crate`, `self` and `super` included.
pub(crate) type Names = Vec<String>;

/// A path somewhere in the code.
#[derive(Debug, Clone)]
pub(crate) struct Reference {
    pub(crate) path: Names,
    /// `src/hub.rs:12`.
    pub(crate) place: String,
}

#[derive(Debug, Default)]
pub(crate) struct Module {
    /// Items that the module defines, child modules among them.
    pub(crate) items: BTreeSet<String>,
    /// Names that `use` brings in, with the path that each stands for.
    pub(crate) imports: BTreeMap<String, Names>,
    /// `use a::b::*`.
    pub(crate) globs: Vec<Names>,
    pub(crate) references: Vec<Reference>,
}

/// All modules by their path from the crate's root; `main.rs` is the module `main`.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    pub(crate) modules: BTreeMap<Names, Module>,
}

/// Source files by their path from the crate's folder.
pub(crate) type Files = BTreeMap<PathBuf, String>;

/// Reads the tree that begins at `src/lib.rs` and `src/main.rs`.
///
/// # Panics
/// If a file cannot be parsed, or does not belong to the tree.
pub(crate) fn read(files: &Files) -> Tree {
    let mut reader = Reader { files, tree: Tree::default(), reached: BTreeSet::new(), tests: Vec::new() };
    reader.file(Path::new("src/lib.rs"), Path::new("src"), Vec::new());
    if files.contains_key(Path::new("src/main.rs")) {
        reader.file(Path::new("src/main.rs"), Path::new("src"), vec!["main".to_owned()]);
    }
    let of_tests = |file: &PathBuf| reader.tests.iter().any(|tests| file.starts_with(tests) || *file == tests.with_extension("rs"));
    let strays: Vec<_> = files.keys().filter(|file| !reader.reached.contains(*file) && !of_tests(file)).collect();
    assert!(strays.is_empty(), "files that no module brings in: {strays:?}");
    reader.tree
}

struct Reader<'a> {
    files: &'a Files,
    tree: Tree,
    reached: BTreeSet<PathBuf>,
    /// Paths, without extension, of modules for tests.
    tests: Vec<PathBuf>,
}

impl Reader<'_> {
    /// `folder` is where the files of the module's children are.
    fn file(&mut self, path: &Path, folder: &Path, module: Names) {
        let text = self.files.get(path).unwrap_or_else(|| panic!("{} is missing", path.display()));
        let file = syn::parse_file(text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        self.reached.insert(path.to_owned());
        self.module(&file.items, path, folder, module);
    }

    fn module(&mut self, items: &[Item], path: &Path, folder: &Path, name: Names) {
        let mut collector = Collector { file: path.display().to_string(), module: Module::default(), children: Vec::new() };
        items.iter().for_each(|item| collector.visit_item(item));
        let Collector { mut module, children, .. } = collector;
        module.items.extend(items.iter().filter(|item| !for_tests(attributes(item))).filter_map(name_of));
        self.tree.modules.insert(name.clone(), module);
        for child in children {
            let ident = child.ident.unraw().to_string();
            let (below, child_name) = (folder.join(&ident), [name.clone(), vec![ident]].concat());
            if for_tests(&child.attrs) {
                self.tests.push(below);
            } else if let Some((_, items)) = &child.content {
                self.module(items, path, &below, child_name);
            } else {
                assert!(!child.attrs.iter().any(|a| a.path().is_ident("path")), "{}: `#[path]` is not read here", path.display());
                self.file(&below.with_extension("rs"), &below, child_name);
            }
        }
    }
}

/// Finds the paths of one module; child modules are set aside.
struct Collector {
    file: String,
    module: Module,
    children: Vec<syn::ItemMod>,
}

impl Collector {
    fn refer(&mut self, path: Names, at: &Ident) {
        let place = format!("{}:{}", self.file, at.span().start().line);
        self.module.references.push(Reference { path, place });
    }

    fn import(&mut self, tree: &UseTree, before: &mut Vec<Ident>) {
        match tree {
            UseTree::Path(path) => {
                before.push(path.ident.clone());
                self.import(&path.tree, before);
                before.pop();
            }
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.import(tree, before)),
            UseTree::Glob(_) => {
                self.module.globs.push(names(before));
                self.refer(names(before), &before[0]);
            }
            UseTree::Name(syn::UseName { ident, .. }) | UseTree::Rename(syn::UseRename { ident, .. }) => {
                // `use a::b::{self}` brings in `b`.
                let of_itself = ident == "self" && !before.is_empty();
                let path: Vec<Ident> = before.iter().chain((!of_itself).then_some(ident)).cloned().collect();
                let last = &path[path.len() - 1];
                let alias = if let UseTree::Rename(renamed) = tree { &renamed.rename } else { last };
                self.module.imports.insert(alias.unraw().to_string(), names(&path));
                self.refer(names(&path), ident);
            }
        }
    }

    /// Paths in tokens that nobody has parsed: those of macros and attributes.
    fn tokens(&mut self, tokens: TokenStream, strings: bool) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        let colons = |at: usize| [at, at + 1].iter().all(|n| matches!(tokens.get(*n), Some(TokenTree::Punct(p)) if p.as_char() == ':'));
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Ident(first) => {
                    let mut path = vec![first.clone()];
                    while colons(at + 1) {
                        match tokens.get(at + 3) {
                            Some(TokenTree::Ident(next)) => path.push(next.clone()),
                            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                                self.braces(group.stream(), &path);
                                break;
                            }
                            _ => break,
                        }
                        at += 3;
                    }
                    self.refer(names(&path), first);
                }
                TokenTree::Group(group) => self.tokens(group.stream(), strings),
                // `#[serde(with = "crate::there")]`
                TokenTree::Literal(literal) if strings => {
                    let text: Option<syn::LitStr> = syn::parse_str(&literal.to_string()).ok();
                    if let Some(path) = text.and_then(|text| text.parse::<syn::Path>().ok()).filter(|path| path.segments.len() > 1) {
                        self.visit_path(&path);
                    }
                }
                _ => {}
            }
            at += 1;
        }
    }

    /// The braces of a `use` in a macro: `crate::{a, b::c}`.
    fn braces(&mut self, inside: TokenStream, before: &[Ident]) {
        let group = TokenStream::from(TokenTree::from(proc_macro2::Group::new(Delimiter::Brace, inside)));
        if let Ok(tree) = syn::parse2::<UseTree>(group) {
            self.import(&tree, &mut before.to_vec());
        }
    }
}

impl<'ast> Visit<'ast> for Collector {
    fn visit_item(&mut self, item: &'ast Item) {
        match item {
            Item::Mod(module) => {
                self.children.push(module.clone());
                module.attrs.iter().for_each(|attribute| self.visit_attribute(attribute));
            }
            item if for_tests(attributes(item)) => {}
            // A leading `::` means another crate's root, as a bare name that is nobody's here does.
            Item::Use(used) => self.import(&used.tree, &mut Vec::new()),
            item => visit::visit_item(self, item),
        }
    }

    /// `pub(crate)` and the like import nothing.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_impl_item(&mut self, item: &'ast syn::ImplItem) {
        let attributes = match item {
            syn::ImplItem::Fn(item) => &item.attrs[..],
            syn::ImplItem::Const(item) => &item.attrs,
            syn::ImplItem::Type(item) => &item.attrs,
            _ => &[],
        };
        if !for_tests(attributes) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        if !for_tests(&field.attrs) {
            visit::visit_field(self, field);
        }
    }

    fn visit_local(&mut self, local: &'ast syn::Local) {
        if !for_tests(&local.attrs) {
            visit::visit_local(self, local);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let idents: Vec<Ident> = path.segments.iter().map(|segment| segment.ident.clone()).collect();
        self.refer(names(&idents), &idents[0]);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, mac: &'ast syn::Macro) {
        self.visit_path(&mac.path);
        self.tokens(mac.tokens.clone(), false);
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if let Meta::List(list) = &attribute.meta {
            self.tokens(list.tokens.clone(), true);
        }
    }
}

fn names(path: &[Ident]) -> Names {
    path.iter().map(|ident| ident.unraw().to_string()).collect()
}

/// Whether `cfg` leaves an item out of everything but tests.
fn for_tests(attributes: &[Attribute]) -> bool {
    fn needs_test(meta: &Meta) -> bool {
        match meta {
            Meta::Path(path) => path.is_ident("test"),
            Meta::List(list) if list.path.is_ident("all") => {
                let nested = list.parse_args_with(syn::punctuated::Punctuated::<Meta, syn::Token![,]>::parse_terminated);
                nested.is_ok_and(|nested| nested.iter().any(needs_test))
            }
            _ => false,
        }
    }
    attributes.iter().any(|a| a.path().is_ident("cfg") && a.parse_args::<Meta>().is_ok_and(|meta| needs_test(&meta)))
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

fn name_of(item: &Item) -> Option<String> {
    let ident = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Mod(item) => &item.ident,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(ident.unraw().to_string())
}
