"""Which Ray cluster a verb uses, where its address comes from, and whether it answers. Ray itself takes minutes to find out."""

import os
import shutil
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from ortho_core.errors import UserError
from rayjobs.verb.console import say

#: Timeouts in seconds: to connect, for an answer, to find the cluster's node on this machine, and for that node's answer. Their
#: sum is below 15.
CONNECT_S, ANSWER_S, NODE_S, RAYLET_S = 2.0, 6.0, 3.0, 3.0
#: The shared memory of Linux, and the bytes of it that are enough.
SHARED_MEMORY, SHARED_MEMORY_BYTES = Path("/dev/shm"), 1 << 30
#: Ray's default folder for temporary files.
RAYS_OWN = "/tmp/ray"
#: The longest path of a socket below the folder of a local Ray, and the most bytes that the path of a socket may have.
SOCKET = "/session_2026-12-31_23-59-59_999999_4194304/sockets/plasma_store.10"
SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
TOKEN = "copy the cluster's token to ~/.ray/auth_token, or set RAY_AUTH_TOKEN_PATH to its file"
IGNORE = "--local ignores it and starts a new Ray for this command"


@dataclass(frozen=True)
class Address:
    """The address of a cluster, the source that names it, and how a user changes that source."""

    place: str
    source: str
    remedy: str

    def refused(self, what: str, remedy: str = "") -> UserError:
        return UserError(f"{self.source} names {self.place}: {what}; {remedy or self.remedy}; {IGNORE}")


def find_address() -> Address | None:
    """The cluster that Ray would use: that of RAY_ADDRESS, else that of `ray start`. None: a local Ray is to be started."""
    from ray._common.utils import get_ray_address_file
    from ray._private.services import find_gcs_addresses

    named = os.environ.get("RAY_ADDRESS", "")
    if named == "local":
        return None
    if named not in {"", "auto"}:
        return Address(named, "RAY_ADDRESS", "unset RAY_ADDRESS, or start the cluster")
    file = Path(get_ray_address_file(None))
    if file.is_file() and (place := file.read_text().strip()):
        return Address(place, str(file), "`ray stop` clears the record of a cluster that no longer runs")
    if named == "auto":
        for place in find_gcs_addresses():
            return Address(place, "RAY_ADDRESS=auto", "unset RAY_ADDRESS")
        raise UserError(
            f"RAY_ADDRESS is auto, but no Ray runs on this machine; start one (`ray start --head`); {IGNORE}"
        )
    return None


def check_address(address: Address) -> None:
    """Raises UserError, within 15 seconds, if no cluster that this command can use answers at the address."""
    host, port = _parts(address)
    try:
        socket.create_connection((host, port), CONNECT_S).close()
    except (OSError, UnicodeError) as error:  # UnicodeError: the name cannot be a host's name
        reason = getattr(error, "strerror", None) or str(error) or "no answer"
        raise address.refused(f"nothing answers there ({reason})") from error
    check_answer(address, host, port)


def _parts(address: Address) -> tuple[str, int]:
    """Host and port. Raises UserError for an address that is not Ray's."""
    scheme, separator, rest = address.place.rpartition("://")
    if scheme in {"http", "https"}:
        raise address.refused(
            "that address is for submitting jobs; it is not Ray's own address",
            f"submit the verb (`ortho submit --address {address.place} VERB ...`), or name HOST:6379",
        )
    if scheme == "ray":
        raise address.refused(
            "that address is for Ray's client, which no verb uses", "name HOST:6379 on a node, or use `ortho submit`"
        )
    host, _, port = rest.rpartition(":")
    if separator or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise address.refused("that is not an address of Ray", "accepted: HOST:PORT, such as 127.0.0.1:6379, or local")
    return host.strip("[]"), int(port)


def check_answer(address: Address, host: str, port: int) -> None:
    """Raises UserError unless the address is Ray of this version, accepts this command, and has a node on this machine."""
    import grpc
    import ray
    from ray._common.network_utils import build_address
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
    from ray._private.grpc_utils import init_grpc_channel
    from ray._private.services import get_node_to_connect_for_driver
    from ray.core.generated.gcs_service_pb2 import CheckAliveRequest
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
    from ray.core.generated.node_manager_pb2 import GetSystemConfigRequest
    from ray.core.generated.node_manager_pb2_grpc import NodeManagerServiceStub
    from ray.exceptions import AuthenticationError

    if address.source != "RAY_ADDRESS":  # Ray's rule: the token is sent automatically to a cluster of this machine
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    place = build_address(host, port)
    straight = [("grpc.enable_http_proxy", 0)]  # like Ray's own connections
    try:
        with init_grpc_channel(place, straight) as channel:
            answer = NodeInfoGcsServiceStub(channel).CheckAlive(CheckAliveRequest(), timeout=ANSWER_S)
    except AuthenticationError as error:
        raise address.refused("RAY_AUTH_MODE=token needs a token, and none is set here", TOKEN) from error
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
            hangs = ", or a Ray that hangs" if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED else ""
            raise address.refused(
                f"what answers there is not Ray{hangs}", "name the address that `ray start` printed"
            ) from error
        if os.environ.get("RAY_AUTH_MODE") == "token":
            raise address.refused("that cluster has another token than this machine", TOKEN) from error
        raise address.refused("that cluster accepts its token only", "export RAY_AUTH_MODE=token") from error
    if answer.ray_version != ray.__version__:
        raise address.refused(
            f"that cluster runs Ray {answer.ray_version}, this command Ray {ray.__version__}",
            "install the same requirements.lock on both",
        )
    try:
        node = get_node_to_connect_for_driver(ray._raylet.GcsClient(address=place), timeout_seconds=NODE_S)
    except RuntimeError as error:
        raise address.refused(
            "this machine is not a node of that cluster",
            f"run the command on a node, join this machine (`ray start --address={place}`), or use `ortho submit`",
        ) from error
    try:
        with init_grpc_channel(build_address(node.node_manager_address, node.node_manager_port), straight) as channel:
            NodeManagerServiceStub(channel).GetSystemConfig(GetSystemConfigRequest(), timeout=RAYLET_S)
    except grpc.RpcError as error:
        raise address.refused("that cluster's node on this machine does not answer", "restart the node") from error


def temporary_folder() -> str | None:
    """Ray's folder for a local session. None: Ray's choice; /tmp/ray if the paths of its sockets would be too long there."""
    from ray._common.utils import get_default_ray_temp_dir

    chosen = get_default_ray_temp_dir()
    if len(os.fsencode(chosen + SOCKET)) <= SOCKET_BYTES:
        return None
    say(f"Ray: the path {chosen} is too long for its sockets; using {RAYS_OWN}")
    return RAYS_OWN


def check_shared_memory() -> None:
    """Print a line if shared memory is small for a local Ray. Raises UserError if there is none."""
    if sys.platform != "linux":  # elsewhere Ray keeps them in files
        return
    if not os.access(SHARED_MEMORY, os.W_OK | os.X_OK):
        raise UserError(
            f"Ray keeps its objects in shared memory, and {SHARED_MEMORY} is missing or cannot be written: mount it (docker run "
            "--shm-size=2g), or work without Ray (--workers 0, if the verb has this option)"
        )
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < SHARED_MEMORY_BYTES:
        say(
            f"Ray: {SHARED_MEMORY} has {free >> 20} MiB free; objects are kept in files, which is slower (docker run "
            "--shm-size=2g)"
        )


def not_started(error: Exception, address: Address | None, folder: str) -> UserError:
    """The error of a failed start of Ray, in one line."""
    reason = " ".join(str(error).split())[:400] or type(error).__name__
    if address is not None:
        return address.refused(
            f"this command cannot join that cluster: {reason}", "install the same requirements.lock on both"
        )
    return UserError(f"Ray did not start on this machine: {reason}; its logs are in {folder}/session_latest/logs")
