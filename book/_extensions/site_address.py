"""Where the site and its sources are: everything comes from the repository's address in `_config.yml`."""

from urllib.parse import urlsplit

from sphinx.config import Config


def site_address(config: Config) -> str:
    """Return the address of the site, with a slash at its end: `html.baseurl`, or else where GitHub Pages puts it.

    Raises:
        ValueError: the repository is not on GitHub and no `html.baseurl` says where its site is.
    """
    if config.html_baseurl:
        return config.html_baseurl.rstrip("/") + "/"
    host, _, path = repository_address(config).removeprefix("https://").partition("/")
    owner, _, name = path.partition("/")
    if host != "github.com" or not name:
        raise ValueError(f"where is the site of {repository_address(config)}? Say so in _config.yml under html: baseurl")
    own_page = f"{owner.lower()}.github.io"
    return f"https://{own_page}/" if name.lower() == own_page else f"https://{own_page}/{name}/"


def repository_address(config: Config) -> str:
    """Return the address of the repository, without a slash at its end."""
    return config.html_theme_options["repository_url"].rstrip("/")


def path_of_site(config: Config) -> str:
    """Return the site's path at its host, with a slash at both ends."""
    return urlsplit(site_address(config)).path or "/"
