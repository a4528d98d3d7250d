"""What is known of a model before it is partitioned: sizes, the memory it needs, the speed to expect."""
