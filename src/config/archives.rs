//! The archives of a configuration: one for each source, each in a folder of its own where there are several.

use anyhow::{Context, bail};
use archive::Archive;
use objects::Objects;

use super::Config;

impl Config {
    /// The section, where something is asked for that is about the archive.
    pub(crate) fn needs_archive(&self) -> anyhow::Result<&archive::Config> {
        self.archive.as_ref().context("the configuration has no archive: add an `archive` section that names its store")
    }

    /// The archives, in the order of the sources, where there are to be any.
    pub(crate) async fn open_archives(&self) -> anyhow::Result<Vec<Archive>> {
        if self.archive.is_none() {
            return Ok(Vec::new());
        }
        self.check_place().await?;
        let mut archives = Vec::new();
        for one in self.each()? {
            let objects = Box::pin(Objects::open(&one.needs_archive()?.store)).await?;
            archives.push(Archive::open(objects, &one.source().name, one.prefix(), one.schemas()?).await?);
        }
        Ok(archives)
    }

    /// Whether an archive stands where it stood while the configuration had fewer sources, or more. It is not begun anew beside that without a word: a joiner that begins with nothing would lack what is in it.
    async fn check_place(&self) -> anyhow::Result<()> {
        let store = &self.needs_archive()?.store;
        // Boxed: what looks for credentials is large.
        let objects = Box::pin(Objects::open(store)).await?;
        let only = Some(self.source_names()).filter(|_| !self.has_several_sources());
        if !Archive::is_begun(&objects, only.as_deref()).await? {
            return Ok(());
        }
        match only {
            None => bail!(
                "archive: {store} holds the archive of an only source, and of several ({}) each has a folder to itself: move what is in it to {}, or name another store",
                self.source_names(),
                store.below("<source>")
            ),
            Some(name) => bail!(
                "archive: {} holds what {name} archived as one of several sources, and an only source has no folder to itself: move what is in it to {store}, or name another store",
                store.below(&name)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn configuration(folder: &std::path::Path, sources: &[&str]) -> Config {
        let source = |name: &&str| format!("{{name: {name}, url: 'sqlserver://sa@127.0.0.1/{name}'}}");
        let sources: Vec<String> = sources.iter().map(source).collect();
        for name in ["bank", "shop"] {
            std::fs::create_dir_all(folder.join("schemas/tables").join(name)).unwrap();
        }
        let path = folder.join("tributary.yaml");
        let text = format!(
            "sources: [{}]\nstreams: {{provider: {{memory: {{}}}}}}\narchive: {{store: {{local: {{path: a}}}}}}\n",
            sources.join(", ")
        );
        std::fs::write(&path, text).unwrap();
        Config::load(&path).unwrap()
    }

    #[tokio::test]
    async fn each_source_has_a_folder_and_none_that_is_elsewhere_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let one = configuration(folder.path(), &["shop"]);
        let several = configuration(folder.path(), &["bank", "shop"]);
        let opened = several.open_archives().await.unwrap();
        assert_eq!(opened.iter().map(Archive::source).collect::<Vec<_>>(), ["bank", "shop"]);
        assert!(folder.path().join("a/bank").is_dir() && folder.path().join("a/shop").is_dir());
        one.open_archives().await.unwrap();

        let begun = folder.path().join("a/shop/archive.json");
        std::fs::write(&begun, r#"{"format":1,"source":"shop","prefix":"shop"}"#).unwrap();
        several.open_archives().await.unwrap();
        let told = one.open_archives().await.unwrap_err().to_string();
        assert!(told.contains("a/shop holds what shop archived as one of several"), "{told}");
        std::fs::rename(begun, folder.path().join("a/archive.json")).unwrap();
        one.open_archives().await.unwrap();
        let told = several.open_archives().await.unwrap_err().to_string();
        assert!(told.contains("the archive of an only source") && told.contains("a/<source>"), "{told}");
    }
}
