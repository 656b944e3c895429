
# Installation - a copy of the PostgreSQL under test that a test may change
#
# A server finds its files relative to its program, so a copy of the programs
# beside links to everything else is an installation of its own. What a test puts
# in, another release of the extension for example, nobody else gets to see.

package Installation;

use strict;
use warnings;

use Carp;
use Cwd qw(abs_path);
use File::Basename qw(dirname);
use File::Copy qw(copy);
use File::Path qw(make_path);
use PostgreSQL::Test::Utils;

my $top = abs_path(dirname(__FILE__) . '/../..');

sub config
{
	my ($program, $what) = @_;

	chomp(my $value = `'$program' --$what`);
	croak "pg_config --$what failed" if $? != 0;
	return $value;
}

sub new
{
	my ($class) = @_;
	my $self = bless { folder => PostgreSQL::Test::Utils::tempdir('installation') }, $class;
	my $config = $ENV{PG_CONFIG} || 'pg_config';
	my %directory = map { $_ => config($config, $_) } qw(bindir pkglibdir sharedir);
	my ($prefix) = ($directory{bindir});

	foreach my $path (values %directory)
	{
		chop $prefix while index("$path/", $prefix) != 0;
	}
	foreach my $what (sort keys %directory)
	{
		my $to = "$self->{folder}/" . substr($directory{$what}, length $prefix);

		make_path(dirname($to));
		system_or_bail('cp', $what eq 'bindir' ? '-rL' : '-rs', $directory{$what}, $to) unless -e $to;
		$self->{$what} = $to;
	}
	foreach my $what (keys %directory)
	{
		croak "this PostgreSQL cannot be moved: $what"
		  if config("$self->{bindir}/pg_config", $what) ne $self->{$what};
	}
	return $self;
}

# What a test cluster takes as its "install_path".
sub path { return dirname($_[0]{bindir}); }

# Puts a library in place as a package does: whoever has the old one mapped keeps it.
sub install_library
{
	my ($self, $library) = @_;
	my $to = "$self->{pkglibdir}/idempotency.so";

	copy($library, "$to.new") or croak "could not copy $library: $!";
	chmod 0755, "$to.new";
	rename "$to.new", $to or croak "could not rename: $!";
	return;
}

# Puts the SQL objects of the next release in place.
sub install_script
{
	my ($self, $script, $version) = @_;
	my $extension = "$self->{sharedir}/extension";
	my $control = slurp_file("$top/idempotency.control");

	$control =~ s/^default_version = .*/default_version = '$version'/m or croak 'no default_version';
	copy($script, $extension) or croak "could not copy $script: $!";
	unlink "$extension/idempotency.control";
	append_to_file("$extension/idempotency.control", $control);
	return;
}

# Compiles this checkout with one more source file. Returns the library's path.
sub build_with
{
	my ($self, $source) = @_;
	my $to = PostgreSQL::Test::Utils::tempdir('next');

	system_or_bail('cp', '-R', "$top/src", "$top/Makefile", "$top/idempotency.control", $to);
	system_or_bail("rm -f '$to'/src/*.o");
	copy($source, "$to/src") or croak "could not copy $source: $!";
	system_or_bail('make', '-s', '-j2', '-C', $to, 'PG_CONFIG=' . ($ENV{PG_CONFIG} || 'pg_config'),
		'with_llvm=no', 'idempotency.so');
	return "$to/idempotency.so";
}

1;
