"""What an operator decides about links to Erlang nodes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kvproto.config.values import DEFAULT_EPMD, NODE_NAME, NodeAddress
from kvproto.errors import ConfigError

__all__ = ["LONGEST_TICKTIME", "NodeConfig"]

LONGEST_TICKTIME = 24 * 3600
"""Seconds; a peer that is gone must be noticed some day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """How the service takes part in an Erlang cluster.

    Every file that is None is the data listener's.

    Attributes:
        listen: Twisted server endpoint description; TLS is put on top.
        name: What the node is called, ``NAME@HOST``.
        cookie_file: Holds the cluster's secret; only its owner may read it.
        certificate: PEM chain, leaf first, shown to nodes that call and that are called.
        private_key: PEM key; None with ``certificate``: it is in the certificate's file.
        key_passphrase_file: File whose first line opens an encrypted key.
        ca: PEM trust anchors of other nodes' certificates, which are always asked for.
        crl: PEM revocation lists of these.
        epmd: Host and port of the epmd to register with; others are asked for on the same
            port of their hosts.  None: nobody is asked.
        connect: Nodes to call, and to call again when a link is lost.
        process: Name of the process that answers calls.
        ticktime: Seconds, at least the ``net_ticktime`` of the other nodes; a silent one is
            given up after them.
    """

    listen: str
    name: str
    cookie_file: Path
    certificate: Path | None = None
    private_key: Path | None = None
    key_passphrase_file: Path | None = None
    ca: Path | None = None
    crl: Path | None = None
    epmd: tuple[str, int] | None = DEFAULT_EPMD
    connect: tuple[NodeAddress, ...] = ()
    process: str = "kvtls"
    ticktime: float = 60.0

    def __post_init__(self) -> None:
        """Raise `ConfigError` where options contradict one another."""
        if not NODE_NAME.fullmatch(self.name) or len(self.name.encode()) > 255:
            raise ConfigError("--node-name", f"{self.name!r} is not NAME@HOST")
        if not 0 < len(self.process) <= 255 or self.process == "net_kernel":
            raise ConfigError("--node-process", f"{self.process!r} cannot be a process's name")
        # "nan" compares false with everything, so this way round it is refused as well.
        if not 1 <= self.ticktime <= LONGEST_TICKTIME:
            raise ConfigError(
                "--node-ticktime",
                f"{self.ticktime:g} is no number of seconds from 1 to {LONGEST_TICKTIME}",
            )
        if self.certificate is None:
            for option, value in (
                ("--node-key", self.private_key),
                ("--node-key-passphrase-file", self.key_passphrase_file),
            ):
                if value is not None:
                    raise ConfigError(option, "needs --node-certificate as well")
        if self.crl is not None and self.ca is None:
            raise ConfigError("--node-crl", "needs --node-ca as well")
        names = [address.name for address in self.connect]
        for address in self.connect:
            if names.count(address.name) > 1:
                raise ConfigError("--node-connect", f"{address.name!r} is given twice")
            if address.name == self.name:
                raise ConfigError("--node-connect", f"{address.name!r} is this node itself")
            if address.port is None and self.epmd is None:
                raise ConfigError(
                    "--node-connect",
                    f"{address.name!r} needs a port with --epmd none: write {address.name}:PORT",
                )

    @property
    def has_own_credentials(self) -> bool:
        """Whether any credential file is not the data listener's."""
        return self.certificate is not None or self.ca is not None
