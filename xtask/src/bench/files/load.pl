# Hashes, strings, regular expressions and sorting.
my %h;
for my $i (1 .. 1000000) {
    my $key = "k" . ($i * 7919 % 100003);
    $h{$key} .= chr(65 + $i % 26);
    $h{$key} =~ s/[A-M]+/x/g if length($h{$key}) > 40;
}
my @keys = sort { $h{$a} cmp $h{$b} } keys %h;
print scalar(@keys), join("", map { reverse $_ } @keys) =~ tr/A-Z//;
