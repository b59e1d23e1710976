"""Known errors of Ascend, HCCL and MindSpore: the pattern of each, its probable cause, and what to type next.

Sources: CANN error codes (runtime error_code.json, hccl error_code.cc, MindSpore's cann_error_cases.md) and faults
reproduced on MindSpore's CPU backend (2.9.0). Codes of CANN are looked for as whole words anywhere in what a rank said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from launcher.jobs.verdict import EN, ZH
from launcher.upstream.versions import pip_install

NOT_BUILT = "cluster not built"


@dataclass(frozen=True, kw_only=True)
class KnownError:
    """One known error. ``machine``: a fault of the machine or of communication, after which a restart may succeed.

    ``elsewhere``: the rank that reports it is usually a victim; another one died, lags or never came.
    """

    name: str
    pattern: re.Pattern[str]
    cause: dict[str, str]
    fix: dict[str, str]
    machine: bool = False
    elsewhere: bool = False


def _known(
    name: str, cause: str, fix: str, cause_zh: str, fix_zh: str, *, pattern: str = "", machine: bool = False,
    elsewhere: bool = False,
) -> KnownError:  # fmt: skip
    return KnownError(
        name=name,
        pattern=re.compile(pattern or rf"\b{name}\b"),
        cause={EN: cause, ZH: cause_zh},
        fix={EN: fix, ZH: fix_zh},
        machine=machine,
        elsewhere=elsewhere,
    )


# In order: the more telling first. A text may show several codes (an inner error comes with every other).
KNOWN_ERRORS: tuple[KnownError, ...] = (
    _known(
        "occupied", "another process has the card", "npu-smi info shows which; stop it and wait 10 s: launcher doctor",
        "该卡被其他进程占用", "用 npu-smi info 查看占用进程，结束后等待 10 秒：launcher doctor",
        pattern=r"(?i)occupying this card|device (?:is )?(?:busy|occupied)|\bEL0005\b", machine=True,
    ),
    _known(
        "EJ0001", "HCCP did not start: as a rule the last training still holds the card",
        "launcher jobs; end the old job, wait 10 s, then: launcher resume JOB",
        "HCCP 初始化失败：通常是上一次训练进程尚未退出",
        "launcher jobs 查看并结束旧任务，等待 10 秒后：launcher resume JOB",
        machine=True,
    ),
    _known(
        "EI0001", "an HCCL_* variable has a bad value, or address families are mixed", "env | grep HCCL_",
        "HCCL_* 环境变量取值错误，或混用了 IPv4 与 IPv6", "env | grep HCCL_",
    ),
    _known(
        "EI0002", "a collective waited longer than HCCL_EXEC_TIMEOUT: another rank died or lags",
        "look at the ranks named as behind: launcher logs JOB --errors",
        "集合通信等待超过 HCCL_EXEC_TIMEOUT：另一 rank 已退出或滞后", "查看滞后的 rank：launcher logs JOB --errors",
        machine=True, elsewhere=True,
    ),
    _known(
        "EI0005", "ranks called a collective with different arguments",
        "use the same data, spec and versions on all ranks; data.drop_remainder must be true",
        "各 rank 的集合通信参数不一致", "各 rank 使用相同的数据、配置与版本；data.drop_remainder 须为 true",
        pattern=r"\bEI000[35]\b",
    ),
    _known(
        "EI0004", "the rank table does not fit this host", "launcher rank-table check TABLE --against-host",
        "rank table 与本机不符", "launcher rank-table check TABLE --against-host", pattern=r"\bEI00(?:04|14|17)\b",
    ),
    _known(
        "EI0006", "a rank did not answer within HCCL_CONNECT_TIMEOUT: it never came, its link is down, or TLS differs",
        "launcher doctor (link, ping, TLS); then launcher resume JOB",
        "建链超时（HCCL_CONNECT_TIMEOUT）：对端未启动、链路断开或 TLS 配置不一致",
        "launcher doctor（检查链路、ping、TLS）；然后 launcher resume JOB",
        pattern=r"\bEI00(?:06|15)\b", machine=True, elsewhere=True,
    ),
    _known(
        "EI0016", "TLS is on for some cards and off for others", "hccn_tool -i N -tls -g on every card",
        "各卡 TLS 开关不一致", "逐卡执行 hccn_tool -i N -tls -g",
    ),
    _known(
        "EI0009", "the transport between two cards could not be set up: optical module, address or LLDP",
        "launcher doctor (link and address of each card)", "两卡间传输初始化失败：光模块、IP 或 LLDP 异常",
        "launcher doctor（检查各卡链路与地址）", pattern=r"\bEI0009\b", machine=True,
    ),
    _known(
        "EI0008", "HCCL versions differ between hosts", "install the same CANN on all hosts: launcher doctor",
        "各节点 HCCL 版本不一致", "各节点安装同一版本的 CANN：launcher doctor",
    ),
    _known(
        "EI0010", "peer-to-peer access between cards failed",
        "export HCCL_INTRA_ROCE_ENABLE=1, then launcher resume JOB",
        "卡间 P2P 访问失败", "export HCCL_INTRA_ROCE_ENABLE=1，然后 launcher resume JOB",
    ),
    _known(
        "EI0012", "a transfer between cards failed in hardware (SDMA or RoCE completion error)",
        "launcher doctor; then launcher resume JOB", "卡间传输硬件错误（SDMA/RoCE CQE）",
        "launcher doctor；然后 launcher resume JOB", pattern=r"\bEI001[23]\b|error cqe", machine=True,
    ),
    _known(
        "EI0019", "a port of the host or the card is taken",
        "set HCCL_IF_BASE_PORT or HCCL_NPU_SOCKET_PORT_RANGE in env",
        "主机或 NPU 端口被占用", "在 env 中设置 HCCL_IF_BASE_PORT 或 HCCL_NPU_SOCKET_PORT_RANGE",
        pattern=r"\bEI00(?:19|20)\b|\bEJ000[34]\b",
    ),
    _known(
        "EJ0002", "the network port of a card is down", "hccn_tool -i N -link -g; then launcher resume JOB",
        "NPU 网口未 up", "hccn_tool -i N -link -g；然后 launcher resume JOB", machine=True,
    ),
    _known(
        "out of device memory", "the card has not enough memory",
        "halve data.batch_size, or use more cards: launcher plan shows what is needed",
        "设备内存不足", "将 data.batch_size 减半，或增加卡数：launcher plan 可查看所需内存",
        pattern=r"\bEL0004\b|\bEI00(?:07|11)\b|\b[12]07001\b|\b207018\b|(?i:halMemAlloc|out of memory|OutOfMemoryError)"
        r"|Device\(id:\d+\) memory isn't enough|Allocate (?:continuous )?memory failed",
    ),
    _known(
        "EE1001", "a card was asked for that this process cannot see",
        "launcher devices; check ASCEND_RT_VISIBLE_DEVICES and --cards", "请求的设备不在可见范围内",
        "launcher devices；检查 ASCEND_RT_VISIBLE_DEVICES 与 --cards", pattern=r"\bEE1001\b|\bEL000[12]\b|\b107001\b",
    ),
    _known(
        "EE1015", "the driver is older than this CANN needs, or a runtime variable is bad", "launcher doctor",
        "驱动版本过旧，或运行时环境变量错误", "launcher doctor", pattern=r"\bEE1015\b|\bEE2002\b",
    ),
    _known(
        "EL0007", "no permission to use the card",
        "add this user to group HwHiAiUser; in a container, map /dev/davinciN",
        "没有访问该卡的权限", "将用户加入 HwHiAiUser 组；容器内须映射 /dev/davinciN", pattern=r"\bEL00(?:07|15)\b",
    ),
    _known(
        "EK0001", "a path has characters that CANN does not take", "use a path of letters, digits, '.', '-' and '_'",
        "路径中含有 CANN 不支持的字符", "路径只使用字母、数字、'.'、'-' 与 '_'",
    ),
    _known(
        "suspect remote", "an operator failed because of a peer (507057)",
        "look at the other ranks: launcher logs JOB --errors",
        "疑似对端故障（507057）", "查看其他 rank：launcher logs JOB --errors", pattern=r"\b507057\b", machine=True,
        elsewhere=True,
    ),
    _known(
        "EE9999", "an inner error of the runtime; the text after it and plog say more",
        "ls ~/ascend/log/debug/plog; launcher logs JOB --errors", "CANN 运行时内部错误，详见其后的文本与 plog",
        "ls ~/ascend/log/debug/plog；launcher logs JOB --errors",
        pattern=r"\b(?:E[EZ1]9999|E19999|E39999|5070\d\d|507899)\b", machine=True,
    ),
    _known(
        "disk full", "the disk is full", "df -h; free some space, then launcher resume JOB",
        "磁盘已满", "df -h 查看并清理空间，然后 launcher resume JOB",
        pattern=r"No space left on device|\[Errno 28\]|Disk quota exceeded",
    ),
    _known(
        "loss is not a number", "the loss became NaN or infinite",
        "lower training.lr_schedule.learning_rate, or set training.max_grad_norm: 1.0; then launcher submit again",
        "loss 变为 NaN 或 Inf",
        "降低 training.lr_schedule.learning_rate，或设置 training.max_grad_norm: 1.0，然后重新提交",
        pattern=r"(?i)loss is (?:nan|inf|not a number)|\bnan loss\b",
    ),
    _known(
        "scheduler port", "the scheduler could not listen on its port", "leave --port out to have a free one picked",
        "调度进程无法监听端口", "不指定 --port，由程序自动选取空闲端口",
        pattern=r"(?i)address already in use|failed to bind|Failed to (?:listen|create the tcp server|"
        r"init\w* the tcp server)",
        machine=True,
    ),
    _known(
        NOT_BUILT, "not all ranks found each other in time",
        "launcher logs JOB: look for the rank that says least",
        "各 rank 未能在规定时间内完成组网", "launcher logs JOB：查看输出最少的 rank",
        pattern=r"(?i)failed to initialize (?:collective|distributed)|Topology build timed out|"
        r"Failed to (?:wait|initialize) .*cluster|Failed to fetch the address of the rank",
        machine=True, elsewhere=True,
    ),
    _known(
        "peer gone", "communication with another rank broke off", "look at the other ranks: launcher logs JOB --errors",
        "与其他 rank 的通信中断", "查看其他 rank：launcher logs JOB --errors",
        pattern=r"wait receiving .* fail|(?i:connection (?:reset|refused)|AllReduce.*fail)",
        machine=True, elsewhere=True,
    ),
    _known(
        "module missing", "a Python package is missing in the environment that ranks use",
        f"{pip_install()}; launcher doctor", "运行环境缺少 Python 包",
        f"{pip_install()}；launcher doctor", pattern=r"ModuleNotFoundError",
    ),
    _known(
        "no kernel", "this backend has no kernel for an operator",
        "launcher doctor; on CPU use data-parallel float32 only",
        "当前后端没有该算子的实现", "launcher doctor；CPU 上仅支持数据并行与 float32", pattern=r"Unsupported op \[",
    ),
)  # fmt: skip


def recognise(texts: Iterable[str]) -> KnownError | None:
    """Return the first known error found in ``texts``, which are tried in order."""
    for text in texts:
        for known in KNOWN_ERRORS:
            if known.pattern.search(text):
                return known
    return None
