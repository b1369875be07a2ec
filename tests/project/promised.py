"""The proofs of each command and promise of the documents: tests, or words after `SAID` that limit the promise."""

SAID = "said: "
RUNS = "tests/end_to_end/test_documented_commands.py::test_the_commands_of_readme_run_as_they_stand"
PAGES = "tests/end_to_end/test_documented_commands.py::test_the_commands_of_the_other_pages_run_as_they_stand"
COMPOSES = "tests/project/test_promises.py::test_a_command_that_trains_composes"
INSTALLS = "tests/project/test_promises.py::test_an_extra_that_is_installed_is_there"
SCRIPTS, SLURM = "tests/launch/test_launch_scripts.py::", "tests/launch/test_slurm.py::"
PREEMPTED = f"{SLURM}test_a_job_preempted_in_a_period_goes_on_as_if_nothing_had_been"
EXAMPLE = f"{SLURM}test_the_first_example_checks_the_cluster_and_says_that_it_has_no_gpu"
ELASTIC = "tests/faults/test_faults_elastic.py::test_the_launcher_starts_a_killed_replica_again_and_leaves_nothing"
NODES = f"{SCRIPTS}test_multinode_passes_on_where_the_nodes_meet"
CHECK = "tests/launch/test_check.py::test_two_nodes_check_each_other"
KUBERNETES = "tests/launch/test_commands.py::test_the_pods_run_what_is_there_on_disks_that_are_claimed"
NETLAB = "tests/launch/test_netlab.py::test_a_sweep_counts_what_the_link_carried"
NOT_ON_A_CLUSTER = f"{SAID}has not run on a cluster yet, and the image was not built"

# The beginning of a command, the longest that fits, and its proofs.
COMMANDS: dict[str, tuple[str, ...]] = {
    "pip install -e": (INSTALLS,),
    "torchrun --standalone --nproc_per_node=2 train.py": (RUNS, COMPOSES),
    "torchrun --standalone --nproc_per_node=10 train.py": (RUNS, COMPOSES),
    "torchrun --standalone --nproc_per_node=2 train.py +experiment=speech": (COMPOSES,),
    "python train.py": (RUNS, COMPOSES),
    "python train.py -m hydra/launcher=submitit_slurm": (
        f"{SLURM}test_a_sweep_of_four_jobs_one_of_which_is_refused",
        COMPOSES,
    ),
    "python -m ddp_agent.report": (RUNS,),
    "python -m ddp_agent.plan": (RUNS,),
    "python -m ddp_agent.checkpoint": (PAGES,),
    "tensorboard": (RUNS, "tests/cli/test_named_runs.py::test_tensorboard_itself_calls_them_so"),
    "sudo launch/netlab.py": (NETLAB,),
    "launch/local.sh": (RUNS, PAGES, COMPOSES),
    "launch/check.sh": (PAGES, CHECK),
    "RUN_DIR=/shared/runs/a NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 launch/check.sh": (CHECK,),
    "RUN_DIR=/shared/runs/a NNODES=2": (NODES, f"{SCRIPTS}test_multinode_goes_on_with_a_run_that_is_there"),
    "NNODES=2": (NODES, PREEMPTED),
    "sbatch": (EXAMPLE, PREEMPTED, COMPOSES),
    "RUN_DIR=/scratch/me/long sbatch": (
        "tests/launch/test_slurm_script.py::test_nodes_are_told_where_to_meet",
        COMPOSES,
    ),
    "kubectl": (KUBERNETES, NOT_ON_A_CLUSTER),
    "sed": ("tests/launch/test_commands.py::test_the_manual_s_smoke_test_is_the_same_job_with_the_check",),
    "docker": (
        "tests/launch/test_commands.py::test_the_image_gets_what_it_runs_and_neither_runs_nor_history",
        NOT_ON_A_CLUSTER,
    ),
    "launch/elastic.sh": (ELASTIC, COMPOSES),
}

KILLED = "tests/faults/test_faults_kill.py::"
DAMAGE = "tests/checkpoint/test_checkpoint_damage.py::"
TRUST = "tests/cli/test_trust.py::"
FUZZED = "tests/data/test_fuzz_readers.py"
SCHEMA = "tests/report/test_report_schema.py::test_the_report_reads_what_runs_write"
FILES = "tests/end_to_end/test_documented_commands.py::test_a_run_leaves_the_files_that_readme_names"
LAWS = "tests/sync/test_laws_of_every_mode.py"
YAMLS = "tests/config/test_every_yaml.py"
PORTS = "tests/distributed/test_secrets_and_ports.py::test_a_run_leaves_no_secret_and_listens_on_loopback_alone"
STOPPED = "tests/faults/test_faults_stop.py"
NOT_SEVERAL = f"{SAID}real machines yet, nor with NCCL between nodes"
ALONE = "tests/elastic/test_elastic.py::"
LOSS = "tests/faults/test_faults_elastic.py::"

# By document and head of a table's first column: the proofs of all rows, or by the first cell of each row.
ROWS: dict[tuple[str, str], tuple[str, ...] | dict[str, tuple[str, ...]]] = {
    ("README.md", "`sync=`"): (LAWS, "tests/sync/test_traits.py"),
    ("README.md", "field"): (YAMLS, "tests/data/test_datasets.py"),
    ("README.md", "file"): (FILES,),
    ("SECURITY.md", "input"): {
        "checkpoints": (
            f"{DAMAGE}test_a_hostile_checkpoint_runs_nothing",
            "tests/faults/test_bombs.py",
            "tests/project/test_security.py::test_nothing_shipped_runs_foreign_code_or_hides_traffic",
        ),
        "exported models": (
            "tests/checkpoint/test_export.py::test_a_module_of_an_untrusted_package_is_refused",
            "tests/checkpoint/test_export.py::test_what_is_damaged_or_foreign_is_refused",
        ),
        "configurations": (
            f"{TRUST}test_what_hydra_would_run_is_refused",
            f"{TRUST}test_of_every_key_of_hydras_node_a_file_sets_what_a_run_needs_and_no_other",
            f"{TRUST}test_a_file_cannot_choose_a_place_outside",
        ),
        "datasets": (FUZZED, "tests/data/test_cifar10.py::test_from_somebody_else_is_not_unpacked"),
        "archives": (
            "tests/data/test_archive.py::test_a_name_that_leads_out_is_refused",
            "tests/data/test_archive.py::test_links_and_devices_are_refused",
            "tests/data/test_archive.py::test_no_more_is_written_than_may_be",
        ),
        "downloads": ("tests/project/test_shipped_files.py::test_every_download_is_named_by_its_sha256",),
        "run directories and sweeps": (
            FUZZED,
            "tests/config/test_hostile_folders.py",
            "tests/report/test_report_page.py::test_whatever_a_run_holds_is_text",
        ),
    },
    ("docs/reliability.md", "exit code of a rank"): {
        "0": ("tests/end_to_end/test_run.py::test_a_run_leaves_everything_behind",),
        "2": ("tests/cli/test_cli.py::test_a_refused_run_starts_nothing",),
        "3": ("tests/faults/test_faults_files.py", "tests/faults/test_faults_disk.py"),
        "4": (f"{KILLED}test_a_rank_that_hangs_is_named_within_the_timeout",),
        "5": ("tests/faults/test_faults_numbers.py",),
        "75": (STOPPED,),
        "1": (f"{KILLED}test_the_first_error_is_told_with_its_rank_and_once",),
        "–": ("tests/outputs/test_run_state.py::test_a_run_whose_process_is_gone_has_died",),
    },
    ("docs/reliability.md", "mode"): ("tests/faults/test_soak.py",),
    ("docs/elastic.md", "part"): (f"{ALONE}test_the_coordinator_listens_on_the_loopback_alone", LOSS[:-2]),
    ("launch/README.md", "where"): {
        "one machine": ("tests/faults/test_faults_torchrun.py::test_local_sh_goes_on_by_itself",),
        "replicas that survive the loss of others": (ELASTIC,),
        "one machine that emulates several slow nodes": (NETLAB,),
        "several machines, by hand": (f"{SCRIPTS}test_multinode_goes_on_with_a_run_that_is_there", NOT_SEVERAL),
        "Slurm": (PREEMPTED,),
        "Slurm, many small runs": (
            f"{SLURM}test_a_sweep_of_four_jobs_one_of_which_is_refused",
            "tests/cli/test_sweep.py::test_an_interrupted_sweep_goes_on",
        ),
        "Kubernetes": (KUBERNETES, NOT_ON_A_CLUSTER),
    },
    ("launch/README.md", "port"): (
        NODES,
        PORTS,
        "tests/launch/test_slurm_script.py::test_nodes_are_told_where_to_meet",
    ),
    ("launch/README.md", "variable"): (PREEMPTED, CHECK, NOT_SEVERAL),
}

# By document and heading (empty: the whole document): the points that begin in bold.
POINTS: dict[tuple[str, str], dict[str, tuple[str, ...]]] = {
    ("SECURITY.md", ""): {
        "Ports.": (PORTS, "tests/distributed/test_run_secret.py", f"{SAID}torchrun has no option against that"),
        "Secrets.": (PORTS, "tests/config/test_redaction.py", f"{SAID}stands under a harmless key is not recognised"),
        "Configurations for clusters.": (
            f"{TRUST}test_of_every_key_of_hydras_node_a_file_sets_what_a_run_needs_and_no_other",
            f"{TRUST}test_what_is_typed_counts",
        ),
        "Dependencies.": (
            "tests/project/test_shipped_files.py::test_the_lock_names_hashes_and_no_place",
            "tests/project/test_shipped_files.py::"
            "test_every_dependency_has_a_lower_bound_and_a_locked_version_that_keeps_it",
        ),
    },
    ("docs/elastic.md", "What is promised"): {
        "Without a loss nothing is different.": (f"{ALONE}test_with_nobody_lost_replicas_are_ranks_bit_for_bit",),
        "A lost replica costs its steps since the last synchronisation": (
            f"{LOSS}test_loss_of_one_costs_its_steps_since_the_last_synchronisation",
        ),
        "No partial result is kept.": (f"{LOSS}test_killed_in_an_averaging_nothing_torn_is_kept",),
        "A replica that comes back joins": (
            f"{LOSS}test_a_killed_replica_that_is_started_again_joins_with_the_current_model",
        ),
        "A replica that was only stopped or slow": (f"{LOSS}test_a_replica_that_was_stopped_for_a_while_joins_again",),
    },
    ("launch/README.md", "Slurm"): {
        "Preempted": (PREEMPTED,),
        "Time nearly over": (
            "tests/launch/test_slurm_script.py::test_the_signal_before_the_end_of_time_reaches_the_ranks",
        ),
        "A node is lost": ("tests/end_to_end/test_resume.py::test_a_restarted_attempt_finds_its_own_checkpoint",),
        "Failed": (f"{SLURM}test_a_job_that_fails_says_why_and_is_not_queued_again",),
        "Cancelled": (f"{SLURM}test_a_cancelled_job_stays_cancelled",),
    },
}
